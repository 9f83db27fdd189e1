//! The metrics against scikit-image, the formula of pytorch-fid, scikit-learn and Pillow
//! (`scripts/make_metrics_fixture.py`).

use std::collections::BTreeMap;

use ndarray::{Array2, Array3, ArrayD};
use onnx_diffprune::array::Array;
use onnx_diffprune::evaluate::{Statistics, frechet_distance, kernel_distance, kernel_distance_on, psnr, resize, ssim};
use onnx_diffprune::npz;

use crate::support::fixtures::fixture;

struct Fixture(BTreeMap<String, Array>);

impl Fixture {
    fn read() -> Self {
        Self(npz::read(&fixture("evaluate/metrics.npz")).unwrap().into_iter().collect())
    }

    fn array(&self, name: &str) -> ArrayD<f64> {
        let array = &self.0[name];
        ArrayD::from_shape_vec(array.dims.clone(), array.to_f64()).unwrap()
    }

    fn image(&self, name: &str) -> Array3<f64> {
        self.array(name).into_dimensionality().unwrap()
    }

    fn features(&self, name: &str) -> Array2<f64> {
        self.array(name).into_dimensionality().unwrap()
    }

    /// Returns the number of names that consist of this prefix and a number.
    fn count(&self, prefix: &str) -> usize {
        let is_numbered = |name: &&String| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
        self.0.keys().filter(is_numbered).count()
    }
}

fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1e-2), "{what}: {found}, expected {expected}");
}

#[test]
fn similarity_agrees_with_scikit_image() {
    let fixture = Fixture::read();
    assert_eq!(fixture.count("image_"), 5);
    for at in 0..fixture.count("image_") {
        let (a, b) = (fixture.image(&format!("image_a_{at}")), fixture.image(&format!("image_b_{at}")));
        let expected = fixture.array(&format!("image_{at}"));
        let range = expected[[0]];
        close(ssim(a.view(), b.view(), range).unwrap(), expected[[1]], &format!("SSIM {at}"));
        close(psnr(a.iter(), b.iter(), range).unwrap(), expected[[2]], &format!("PSNR {at}"));
    }
}

#[test]
fn frechet_distances_agree_with_the_formula_of_pytorch_fid() {
    let fixture = Fixture::read();
    assert_eq!(fixture.count("frechet_"), 6);
    for at in 0..fixture.count("frechet_") {
        let of = |side: &str| Statistics::of(fixture.features(&format!("features_{side}_{at}")).view()).unwrap();
        let found = frechet_distance(&of("a"), &of("b")).unwrap();
        close(found, fixture.array(&format!("frechet_{at}"))[[]], &format!("Fréchet distance {at}"));
        // The distance is symmetric.
        close(frechet_distance(&of("b"), &of("a")).unwrap(), found, &format!("Fréchet distance {at}, swapped"));
    }
}

#[test]
fn kernel_distances_agree_with_those_of_scikit_learn() {
    let fixture = Fixture::read();
    let (a, b) = (fixture.features("kernel_a"), fixture.features("kernel_b"));
    let (subsets, expected) = (fixture.array("kernel_subsets"), fixture.array("kernel"));
    let rows = |subset: usize, side: usize| -> Vec<usize> {
        (0..subsets.shape()[2]).map(|at| subsets[[subset, side, at]] as usize).collect()
    };
    let subsets: Vec<_> = (0..subsets.shape()[0]).map(|subset| (rows(subset, 0), rows(subset, 1))).collect();
    let found = kernel_distance_on(a.view(), b.view(), &subsets).unwrap();
    close(found.mean, expected[[0]], "mean over subsets");
    close(found.deviation, expected[[1]], "deviation over subsets");
    let some = a.slice_axis(ndarray::Axis(0), ndarray::Slice::from(0..90));
    let whole = kernel_distance(some, b.view(), &Default::default()).unwrap();
    close(whole.mean, expected[[2]], "all samples");
}

#[test]
fn images_are_resized_as_pillow_resizes_them() {
    let fixture = Fixture::read();
    let flat = |name: &str| fixture.array(name).mapv(|value| value as f32).insert_axis(ndarray::Axis(0));
    let image: Array3<f32> = flat("resize").into_dimensionality().unwrap();
    assert_eq!(fixture.count("resize_"), 5);
    for at in 0..fixture.count("resize_") {
        let expected: Array3<f32> = flat(&format!("resize_{at}")).into_dimensionality().unwrap();
        let found = resize(image.view(), expected.dim().1, expected.dim().2);
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{at}: {worst}");
    }
}

//! Gradients of normalisations, which differ only in the axes of their moments.

use super::GradientCx;

/// A value normalised by its moments along some axes.
pub struct Normalized {
    /// `y = (x - mean) / deviation`, or `x / root mean square`.
    pub y: String,
    /// `1 / deviation`, of size one along the normalised axes.
    inverse: String,
    is_centred: bool,
}

impl GradientCx<'_> {
    /// Computes `(x - mean) / sqrt(variance + epsilon)` along `axes`, without the mean unless `is_centred`. `own` is
    /// the result if the graph already has it.
    pub fn normalized(
        &mut self,
        x: &str,
        shape: &[i64],
        axes: &[usize],
        epsilon: f64,
        is_centred: bool,
        own: Option<String>,
    ) -> Normalized {
        let centred = if is_centred {
            let mean = self.reduce_mean(x, axes, true);
            self.op("Sub", &[x, &mean])
        } else {
            x.to_owned()
        };
        let square = self.mul(&centred, &centred);
        let variance = self.reduce_mean(&square, axes, true);
        debug_assert!(axes.iter().all(|axis| *axis < shape.len()));
        let epsilon = self.scalar(epsilon);
        let variance = self.op("Add", &[&variance, &epsilon]);
        let deviation = self.op("Sqrt", &[&variance]);
        let inverse = self.op("Reciprocal", &[&deviation]);
        let y = match own {
            Some(own) => own,
            None => self.mul(&centred, &inverse),
        };
        Normalized { y, inverse, is_centred }
    }

    /// Computes the gradient with respect to x from the gradient `g` with respect to the normalised value: `(g -
    /// mean(g) - y mean(g y)) / deviation`, without the first mean if x was not centred.
    pub fn through_norm(&mut self, norm: &Normalized, g: &str, axes: &[usize]) -> String {
        let product = self.mul(g, &norm.y);
        let share = self.reduce_mean(&product, axes, true);
        let along = self.mul(&norm.y, &share);
        let mut rest = self.op("Sub", &[g, &along]);
        if norm.is_centred {
            let mean = self.reduce_mean(g, axes, true);
            rest = self.op("Sub", &[&rest, &mean]);
        }
        self.mul(&rest, &norm.inverse)
    }
}

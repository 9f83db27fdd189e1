//! The gradient of softmax.

/// Computes `dx = y (dy - sum of y dy)` for every row.
#[inline(always)]
pub(super) fn softmax_gradient(y: &[f32], dy: &[f32], dx: &mut [f32], row: usize) {
    for ((y, dy), dx) in y.chunks_exact(row).zip(dy.chunks_exact(row)).zip(dx.chunks_exact_mut(row)) {
        let sum = super::norm::sums_of_products(y, dy).1 as f32;
        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = y * (dy - sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_agrees_with_centred_differences() {
        let (x, dy) = ([0.3, -1.2, 0.8, 2.0f64], [1.0, -0.5, 2.0, 0.25f64]);
        let softmax = |x: &[f64]| {
            let total: f64 = x.iter().map(|x| x.exp()).sum();
            x.iter().map(|x| x.exp() / total).collect::<Vec<f64>>()
        };
        let y: Vec<f32> = softmax(&x).iter().map(|y| *y as f32).collect();
        let single: Vec<f32> = dy.iter().map(|dy| *dy as f32).collect();
        let mut dx = vec![0.0; 4];
        softmax_gradient(&y, &single, &mut dx, 4);
        for at in 0..4 {
            let loss = |step: f64| {
                let mut x = x;
                x[at] += step;
                softmax(&x).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
            };
            let difference = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!((f64::from(dx[at]) - difference).abs() < 1e-6);
        }
    }
}

//! Sums, shapes and layouts that the gradient rules share.

use crate::onnx::{attr_int, attr_ints};

use super::GradientCx;

impl GradientCx<'_> {
    /// `a * b`.
    pub fn mul(&mut self, a: &str, b: &str) -> String {
        self.op("Mul", &[a, b])
    }

    /// `a * factor`.
    pub fn scaled(&mut self, a: &str, factor: f64) -> String {
        if factor == 1.0 {
            return a.to_owned();
        }
        let factor = self.scalar(factor);
        self.mul(a, &factor)
    }

    /// The sum over `axes`.
    pub fn reduce_sum(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        self.tape.reduce_sum(value, axes, keepdims)
    }

    /// The mean over `axes`.
    pub fn reduce_mean(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        self.tape.reduce_mean(value, axes, keepdims)
    }

    /// A value of shape `from` summed to shape `to`, which broadcasts to `from`.
    pub fn sum_to(&mut self, value: &str, from: &[i64], to: &[i64]) -> String {
        let missing = from.len() - to.len().min(from.len());
        let axes: Vec<usize> =
            (0..from.len()).filter(|axis| *axis < missing || (to[axis - missing] == 1 && from[*axis] != 1)).collect();
        let sum = self.reduce_sum(value, &axes, true);
        if missing == 0 { sum } else { self.reshape(&sum, to) }
    }

    /// The value with another shape.
    pub fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        self.tape.reshape(value, shape)
    }

    /// The value repeated along axes of size one.
    pub fn expand(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Expand", &[value, &shape])
    }

    /// The value with its axes in another order; `perm` names the old axis at every new place.
    pub fn transpose(&mut self, value: &str, perm: &[usize]) -> String {
        if perm.iter().enumerate().all(|(at, axis)| at == *axis) {
            return value.to_owned();
        }
        let perm: Vec<i64> = perm.iter().map(|axis| *axis as i64).collect();
        self.op_with("Transpose", &[value], vec![attr_ints("perm", &perm)])
    }

    /// The value, of rank `rank`, with its last two axes swapped.
    pub fn matrix_transpose(&mut self, value: &str, rank: usize) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(value, &perm)
    }

    /// Values joined along an axis.
    pub fn concat(&mut self, values: &[String], axis: usize) -> String {
        match values {
            [one] => one.clone(),
            many => {
                let many: Vec<&str> = many.iter().map(String::as_str).collect();
                self.op_with("Concat", &many, vec![attr_int("axis", axis as i64)])
            }
        }
    }

    /// The transposed map of an operation that is linear along one axis.
    ///
    /// `matrix` is `[m, n]`: row i is what the operation makes of the i-th unit vector of an axis of m elements. The
    /// value has n elements along `axis`, of `rank` axes; the result has m.
    pub fn along_axis(&mut self, value: &str, axis: usize, rank: usize, matrix: &str) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(axis, rank - 1);
        let moved = self.transpose(value, &perm);
        let transposed = self.matrix_transpose(matrix, 2);
        let product = self.op("MatMul", &[&moved, &transposed]);
        self.transpose(&product, &perm)
    }

    /// The identity matrix of `size` rows, of shape `dims`.
    pub fn identity(&mut self, size: i64, dims: &[i64]) -> String {
        let count = usize::try_from(size).unwrap_or(0);
        let mut values = vec![0.0; count * count];
        for at in 0..count {
            values[at * count + at] = 1.0;
        }
        self.floats(&values, dims)
    }
}

impl GradientCx<'_> {
    /// `a * b` of matrices, each transposed first where asked for.
    pub fn gemm(&mut self, a: &str, b: &str, trans_a: bool, trans_b: bool) -> String {
        let attributes = vec![attr_int("transA", i64::from(trans_a)), attr_int("transB", i64::from(trans_b))];
        if self.opset() >= 11 {
            return self.op_with("Gemm", &[a, b], attributes);
        }
        // Before opset 11 the third operand must be there.
        let zero = self.floats(&[0.0], &[1]);
        self.op_with("Gemm", &[a, b, &zero], attributes)
    }

    /// 1 where two floats are equal, else 0.
    pub fn equal(&mut self, a: &str, b: &str) -> String {
        let equal = if self.opset() >= 11 {
            self.op("Equal", &[a, b])
        } else {
            // Equal compares integers alone before opset 11.
            let (above, below) = (self.op("Greater", &[a, b]), self.op("Less", &[a, b]));
            let differs = self.op("Or", &[&above, &below]);
            self.op("Not", &[&differs])
        };
        self.op_with("Cast", &[&equal], vec![attr_int("to", crate::onnx::DataType::Float as i64)])
    }

    /// `above` where `x > 0`, else `below`.
    pub fn where_positive(&mut self, x: &str, above: &str, below: &str) -> String {
        let zero = self.scalar(0.0);
        let is_positive = self.op("Greater", &[x, &zero]);
        self.op("Where", &[&is_positive, above, below])
    }
}

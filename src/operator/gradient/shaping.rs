//! Sums, shapes and layouts that gradient rules share.

use crate::onnx::{attr_int, attr_ints};

use super::GradientCx;

impl GradientCx<'_> {
    /// Computes `a * b`.
    pub fn mul(&mut self, a: &str, b: &str) -> String {
        self.op("Mul", &[a, b])
    }

    /// Computes `a * factor`.
    pub fn scaled(&mut self, a: &str, factor: f64) -> String {
        if factor == 1.0 {
            return a.to_owned();
        }
        let factor = self.scalar(factor);
        self.mul(a, &factor)
    }

    /// Computes the sum over `axes`.
    pub fn reduce_sum(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        self.tape.reduce_sum(value, axes, keepdims)
    }

    /// Computes the mean over `axes`.
    pub fn reduce_mean(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        self.tape.reduce_mean(value, axes, keepdims)
    }

    /// Sums a value of shape `from` to shape `to`, which broadcasts to `from`.
    pub fn sum_to(&mut self, value: &str, from: &[i64], to: &[i64]) -> String {
        let missing = from.len() - to.len().min(from.len());
        let axes: Vec<usize> =
            (0..from.len()).filter(|axis| *axis < missing || (to[axis - missing] == 1 && from[*axis] != 1)).collect();
        let sum = self.reduce_sum(value, &axes, true);
        if missing == 0 { sum } else { self.reshape(&sum, to) }
    }

    /// Gives the value another shape.
    pub fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        self.tape.reshape(value, shape)
    }

    /// Repeats the value along axes of size one.
    pub fn expand(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Expand", &[value, &shape])
    }

    /// Permutes the axes of the value; `perm` is the old axis at every new position.
    pub fn transpose(&mut self, value: &str, perm: &[usize]) -> String {
        if perm.iter().enumerate().all(|(at, axis)| at == *axis) {
            return value.to_owned();
        }
        let perm: Vec<i64> = perm.iter().map(|axis| *axis as i64).collect();
        self.op_with("Transpose", &[value], vec![attr_ints("perm", &perm)])
    }

    /// Swaps the last two axes of the value, whose rank is `rank`.
    pub fn matrix_transpose(&mut self, value: &str, rank: usize) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(value, &perm)
    }

    /// Joins values along an axis.
    pub fn concat(&mut self, values: &[String], axis: usize) -> String {
        match values {
            [one] => one.clone(),
            many => {
                let many: Vec<&str> = many.iter().map(String::as_str).collect();
                self.op_with("Concat", &many, vec![attr_int("axis", axis as i64)])
            }
        }
    }

    /// Applies the transpose of an operation that is linear along one axis.
    ///
    /// `matrix` is `[m, n]`: row i is the result of the operation for the i-th unit vector of an axis of m elements.
    /// The value, of rank `rank`, has n elements along `axis`; the result has m.
    pub fn along_axis(&mut self, value: &str, axis: usize, rank: usize, matrix: &str) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(axis, rank - 1);
        let moved = self.transpose(value, &perm);
        let transposed = self.matrix_transpose(matrix, 2);
        let product = self.op("MatMul", &[&moved, &transposed]);
        self.transpose(&product, &perm)
    }

    /// Adds the identity matrix of `size` rows, with shape `dims`.
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
    /// Computes `a * b` of two matrices, each transposed first if requested.
    pub fn gemm(&mut self, a: &str, b: &str, trans_a: bool, trans_b: bool) -> String {
        let attributes = vec![attr_int("transA", i64::from(trans_a)), attr_int("transB", i64::from(trans_b))];
        if self.opset() >= 11 {
            return self.op_with("Gemm", &[a, b], attributes);
        }
        // Before opset 11, the third operand is not optional.
        let zero = self.floats(&[0.0], &[1]);
        self.op_with("Gemm", &[a, b, &zero], attributes)
    }

    /// Computes 1 where two floats are equal, else 0.
    pub fn equal(&mut self, a: &str, b: &str) -> String {
        let equal = if self.opset() >= 11 {
            self.op("Equal", &[a, b])
        } else {
            // Before opset 11, Equal compares integers only.
            let (above, below) = (self.op("Greater", &[a, b]), self.op("Less", &[a, b]));
            let differs = self.op("Or", &[&above, &below]);
            self.op("Not", &[&differs])
        };
        self.op_with("Cast", &[&equal], vec![attr_int("to", crate::onnx::DataType::Float as i64)])
    }

    /// Selects `above` where `x > 0`, else `below`.
    pub fn where_positive(&mut self, x: &str, above: &str, below: &str) -> String {
        let zero = self.scalar(0.0);
        let is_positive = self.op("Greater", &[x, &zero]);
        self.op("Where", &[&is_positive, above, below])
    }
}

//! Statistics and norms over the kept part of a value.

use super::ReferenceCx;
use crate::operator::RuleError;

impl ReferenceCx<'_> {
    /// Computes the number of kept elements along static `axes` of input `slot`, float32; the axes keep size one.
    pub fn kept_count(&mut self, slot: usize, axes: &[i64]) -> String {
        let mask = self.full_mask(slot);
        self.reduce("ReduceSum", &mask, axes)
    }

    /// Computes mean and variance of the kept elements of input `slot` along static `axes`, float32; the axes keep
    /// size one.
    pub fn kept_moments(&mut self, slot: usize, axes: &[i64]) -> (String, String) {
        let count = self.kept_count(slot, axes);
        let x = self.zeroed(slot);
        let x = self.cast_to_float(&x, slot);
        let sum = self.reduce("ReduceSum", &x, axes);
        let mean = self.add("Div", &[&sum, &count], vec![]);
        let centred = self.add("Sub", &[&x, &mean], vec![]);
        let mask = self.full_mask(slot);
        let centred = self.add("Mul", &[&centred, &mask], vec![]);
        let squares = self.add("Mul", &[&centred, &centred], vec![]);
        let sum = self.reduce("ReduceSum", &squares, axes);
        let variance = self.add("Div", &[&sum, &count], vec![]);
        (mean, variance)
    }

    /// Computes `(x - mean) / sqrt(variance + epsilon)` of the kept elements of input `slot` along static `axes`, in
    /// the element type of the input.
    pub fn normalized(&mut self, slot: usize, axes: &[i64], epsilon: f32) -> String {
        let (mean, variance) = self.kept_moments(slot, axes);
        let input = self.input(slot);
        let x = self.cast_to_float(&input, slot);
        let centred = self.add("Sub", &[&x, &mean], vec![]);
        let epsilon = self.floats(&[epsilon], &[]);
        let variance = self.add("Add", &[&variance, &epsilon], vec![]);
        let deviation = self.add("Sqrt", &[&variance], vec![]);
        let normalized = self.add("Div", &[&centred, &deviation], vec![]);
        self.cast_to_input(&normalized, slot)
    }

    /// Computes `y * scale + bias`, where inputs `scale` and `bias` are vectors along `axis` of a value of rank
    /// `rank`; a slot that the node omits is skipped. Removed entries of the parameters only meet removed positions.
    pub fn scaled(&mut self, y: &str, scale: usize, bias: usize, axis: i64, rank: i64) -> String {
        let mut result = y.to_owned();
        for (slot, op_type) in [(scale, "Mul"), (bias, "Add")] {
            if self.node.input(slot).is_none() {
                continue;
            }
            let mut target = vec![1; usize::try_from(rank).unwrap_or(0)];
            if let Some(size) = target.get_mut(usize::try_from(axis).unwrap_or(0)) {
                *size = -1;
            }
            let target = self.ints(&target, &[rank]);
            let input = self.zeroed(slot);
            let parameter = self.add("Reshape", &[&input, &target], vec![]);
            result = self.add(op_type, &[&result, &parameter], vec![]);
        }
        result
    }

    /// Normalises input `slot`, `[N, C, ...]`, over the kept members of each of `groups` groups of consecutive
    /// channels.
    pub fn group_normalized(&mut self, slot: usize, groups: i64, epsilon: f32) -> String {
        let input = self.input(slot);
        let shape = self.add("Shape", &[&input], vec![]);
        let target = self.ints(&[0, groups, -1], &[3]);
        let mask = self.full_mask(slot);
        let x = self.zeroed(slot);
        let x = self.cast_to_float(&x, slot);
        let x = self.add("Reshape", &[&x, &target], vec![]);
        let mask = self.add("Reshape", &[&mask, &target], vec![]);
        let count = self.reduce("ReduceSum", &mask, &[2]);
        let sum = self.reduce("ReduceSum", &x, &[2]);
        let mean = self.add("Div", &[&sum, &count], vec![]);
        let centred = self.add("Sub", &[&x, &mean], vec![]);
        let centred = self.add("Mul", &[&centred, &mask], vec![]);
        let squares = self.add("Mul", &[&centred, &centred], vec![]);
        let sum = self.reduce("ReduceSum", &squares, &[2]);
        let variance = self.add("Div", &[&sum, &count], vec![]);
        let epsilon = self.floats(&[epsilon], &[]);
        let variance = self.add("Add", &[&variance, &epsilon], vec![]);
        let deviation = self.add("Sqrt", &[&variance], vec![]);
        let y = self.add("Div", &[&centred, &deviation], vec![]);
        let y = self.add("Reshape", &[&y, &shape], vec![]);
        self.cast_to_input(&y, slot)
    }

    /// Computes `y * scale + bias`, where inputs `scale` and `bias` have one entry per norm group of axis 1.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if the number of channels is not known.
    pub fn scaled_groups(
        &mut self,
        y: &str,
        scale: usize,
        bias: usize,
        groups: i64,
        rank: i64,
    ) -> Result<String, RuleError> {
        let channels = self.fact(0).and_then(|fact| fact.shape.as_ref()?.get(1)?.as_const());
        let channels = channels.ok_or(RuleError::UnknownShape)?;
        let mut result = y.to_owned();
        for (slot, op_type) in [(scale, "Mul"), (bias, "Add")] {
            let input = self.zeroed(slot);
            let column = self.ints(&[groups, 1], &[2]);
            let parameter = self.add("Reshape", &[&input, &column], vec![]);
            let repeated = self.ints(&[groups, channels / groups.max(1)], &[2]);
            let parameter = self.add("Expand", &[&parameter, &repeated], vec![]);
            let mut target = vec![1; usize::try_from(rank).unwrap_or(0)];
            if let Some(size) = target.get_mut(1) {
                *size = channels;
            }
            let target = self.ints(&target, &[rank]);
            let parameter = self.add("Reshape", &[&parameter, &target], vec![]);
            result = self.add(op_type, &[&result, &parameter], vec![]);
        }
        Ok(result)
    }

    /// Computes `x / sqrt(mean(x^2) + epsilon)` of the kept elements of input `slot` along static `axes`, in the
    /// element type of the input.
    pub fn root_mean_square(&mut self, slot: usize, axes: &[i64], epsilon: f32) -> String {
        let count = self.kept_count(slot, axes);
        let x = self.zeroed(slot);
        let x = self.cast_to_float(&x, slot);
        let squares = self.add("Mul", &[&x, &x], vec![]);
        let sum = self.reduce("ReduceSum", &squares, axes);
        let mean = self.add("Div", &[&sum, &count], vec![]);
        let epsilon = self.floats(&[epsilon], &[]);
        let mean = self.add("Add", &[&mean, &epsilon], vec![]);
        let root = self.add("Sqrt", &[&mean], vec![]);
        let y = self.add("Div", &[&x, &root], vec![]);
        self.cast_to_input(&y, slot)
    }
}

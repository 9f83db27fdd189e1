//! Conditioning dropout: some samples get no conditioning, so that networks learn what guidance needs.

use crate::array::{Array, ArrayData};

/// Replaces the rows of dropped samples in an array of conditioning by `empty` (one row of the same type), or by zeros
/// if there is none.
///
/// Networks are trained for classifier-free guidance by dropping the conditioning of some samples (Ho and Salimans,
/// "Classifier-Free Diffusion Guidance", section 3.2). Without `empty`, a mask (an array with "mask" in its name) keeps
/// its rows: many networks are undefined if everything is masked. `dropped` has an entry for each row.
pub fn replace_dropped(name: &str, rows: &mut Array, dropped: &[bool], empty: Option<&Array>) {
    if empty.is_none() && name.to_ascii_lowercase().contains("mask") {
        return;
    }
    let Some(length) = rows.data.len().checked_div(dropped.len()) else { return };
    fn fill<T: Copy + Default>(values: &mut [T], empty: Option<&[T]>, dropped: &[bool], length: usize) {
        let chosen = values.chunks_exact_mut(length.max(1)).zip(dropped).filter(|(_, dropped)| **dropped);
        for (row, _) in chosen {
            match empty {
                Some(empty) if empty.len() == row.len() => row.copy_from_slice(empty),
                _ => row.fill(T::default()),
            }
        }
    }
    macro_rules! each {
        ($($variant:ident),*) => {
            match &mut rows.data {
                $(ArrayData::$variant(values) => {
                    let empty = match empty.map(|array| &array.data) {
                        Some(ArrayData::$variant(empty)) => Some(empty.as_slice()),
                        _ => None,
                    };
                    fill(values, empty, dropped, length);
                })*
            }
        };
    }
    each!(F32, F64, F16, BF16, I64, I32, I16, I8, U8, U16, U32, U64, Bool);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Array {
        Array::new(vec![3, 2], ArrayData::I32(vec![1, 2, 3, 4, 5, 6])).unwrap()
    }

    fn replaced(name: &str, dropped: &[bool], empty: Option<&Array>) -> ArrayData {
        let mut rows = rows();
        replace_dropped(name, &mut rows, dropped, empty);
        rows.data
    }

    #[test]
    fn dropped_rows_become_zeros_or_the_given_row() {
        let dropped = [true, false, true];
        assert_eq!(replaced("labels", &dropped, None), ArrayData::I32(vec![0, 0, 3, 4, 0, 0]));
        let empty = Array::new(vec![2], ArrayData::I32(vec![8, 9])).unwrap();
        assert_eq!(replaced("labels", &dropped, Some(&empty)), ArrayData::I32(vec![8, 9, 3, 4, 8, 9]));
        assert_eq!(replaced("labels", &[false; 3], Some(&empty)), rows().data);
    }

    #[test]
    fn masks_are_unchanged_unless_a_row_is_given() {
        assert_eq!(replaced("encoder_attention_MASK", &[true; 3], None), rows().data);
        let empty = Array::new(vec![2], ArrayData::I32(vec![1, 0])).unwrap();
        assert_eq!(replaced("mask", &[true; 3], Some(&empty)), ArrayData::I32(vec![1, 0, 1, 0, 1, 0]));
    }
}

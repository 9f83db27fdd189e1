//! Operators that reduce axes. A reduction over channels uses the kept channels.

use onnx_diffprune::onnx::{attr_int, attr_ints};

use super::In::{Ints, X};
use super::{Case, case, check, in_opset};

/// All reductions.
const ALL: &str = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum \
    ReduceLogSumExp";

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    let x = X(&[2, 6, 8]);
    let flat = [attr_int("keepdims", 0)];
    vec![
        case(ALL, &[x, Ints(&[1])], &[], "[a b c], [1] -> [a 1 c]"),
        case(ALL, &[x, Ints(&[-1])], &flat, "[a b c], [1] -> [a b]"),
        case(ALL, &[x, Ints(&[2, 0])], &flat, "[a b c], [.] -> [b]"),
        case(ALL, &[x], &[], "[a b c] -> [1 1 1]"),
        case(ALL, &[x], &flat, "[a b c] -> []"),
        case(ALL, &[x], &[attr_int("noop_with_empty_axes", 1)], "[a b c] -> [a b c]"),
        in_opset(11, ALL, &[x], &[attr_ints("axes", &[-2]), attr_int("keepdims", 0)], "[a b c] -> [a c]"),
        case("Det", &[X(&[2, 3, 3])], &[], "[a b! c!] -> [a]"),
    ]
}

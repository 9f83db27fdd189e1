//! Operators that read or write at indices, count, or select.

use onnx_diffprune::onnx::attr_int;

use super::In::{Floats, Indices, Int, Ints, IntsOf, Truth, X};
use super::{Case, case, check, in_opset, outputs};

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    let (x, data) = (X(&[2, 8, 6]), X(&[4, 5, 6]));
    let axis = |axis| [attr_int("axis", axis)];
    vec![
        // Constant indices select channels. A single index leaves no channel axis.
        case("Gather", &[x, Ints(&[5, 3])], &axis(1), "[a b c], [.] -> [a b[5,3] c]"),
        case("Gather", &[x, Ints(&[-1, 0])], &axis(-2), "[a b c], [.] -> [a b[7,0] c]"),
        case("Gather", &[x, Int(2)], &axis(1), "[a b![2] c], [] -> [a c]"),
        case("Gather", &[x, Indices(&[7])], &axis(1), "[a b! c], [.] -> [a . c]"),
        case("Gather", &[X(&[9, 6]), Indices(&[2, 7])], &[], "[a! b], [. .] -> [. . b]"),
        case("GatherND", &[data, Indices(&[3, 2])], &[], "[a! b! c], [. .] -> [. c]"),
        case("GatherND", &[data, Indices(&[4, 1])], &[attr_int("batch_dims", 1)], "[a! b! c], [. 1] -> [. c]"),
        case("GatherElements", &[X(&[4, 5]), Indices(&[4, 3])], &axis(1), "[a! b!], [. .] -> [a! .]"),
        case("ScatterND", &[data, Indices(&[3, 1]), X(&[3, 5, 6])], &[], "[a! b c], [. 1], [d! b c] -> [a! b c]"),
        // Along the diagonal, as exporters write a depthwise kernel.
        case(
            "ScatterND",
            &[X(&[3, 3, 6]), IntsOf(&[0, 0, 1, 1, 2, 2], &[3, 2]), X(&[3, 6])],
            &[],
            "[a a b], [. .], [a b] -> [a a b]",
        ),
        case("ScatterElements", &[X(&[4, 5]), Indices(&[2, 5]), X(&[2, 5])], &[], "[a! b!], [. .], [c! b!] -> [. b!]"),
        in_opset(10, "Scatter", &[X(&[4, 5]), Indices(&[2, 5]), X(&[2, 5])], &[], "[a! b!], [. .], [c! b!] -> [. b!]"),
        // Assigns a block of channels.
        case(
            "ScatterND",
            &[X(&[2, 5, 6]), IntsOf(&[0, 3, 0, 1, 1, 3, 1, 1], &[2, 2, 2]), X(&[2, 2, 6])],
            &[],
            "[a b c], [. . .], [a d c] -> [a b[0]+d[1]+b[2]+d[0]+b[4] c]",
        ),
        case(
            "GatherElements",
            &[X(&[4, 5]), IntsOf(&[0, 2, 1, 3, 0, 2, 1, 0], &[4, 2])],
            &axis(1),
            "[a b!], [a c!] -> [a .]",
        ),
        case("ArgMax ArgMin", &[x], &axis(1), "[a! b! c!] -> [. 1 .]"),
        case("ArgMax ArgMin", &[x], &[attr_int("axis", -1), attr_int("keepdims", 0)], "[a! b! c!] -> [. .]"),
        case("NonZero", &[x], &[], "[a! b! c!] -> [. .]"),
        case("OneHot", &[Indices(&[5]), Int(4), Floats(&[0.0, 1.0])], &[], "[.], [], [a!] -> [. .]"),
        outputs(2, "TopK", &[X(&[2, 6]), Ints(&[3])], &[], "[a! b!], [1] -> [. .], [. .]"),
        case("EyeLike", &[X(&[5, 6])], &[], "[a! b!] -> [. .]"),
        case("Trilu m:Trilu", &[X(&[2, 5, 6])], &[], "[a b! c!] -> [a b! c!]"),
        case("CumSum CumProd", &[x, Int(1)], &[], "[a b! c], [] -> [a b! c]"),
        case("CumSum", &[x, Ints(&[-1])], &[], "[a b c!], [1] -> [a b c!]"),
        case("Compress", &[X(&[2, 6]), Truth(&[6])], &axis(1), "[a b!], [c!] -> [a .]"),
        case("Compress", &[X(&[2, 6]), Truth(&[12])], &[], "[a! b!], [c!] -> [.]"),
        case("ReverseSequence", &[X(&[7, 2, 6]), Indices(&[2])], &[], "[a! b! c], [.] -> [a! b! c]"),
        case(
            "ReverseSequence",
            &[X(&[2, 7, 6]), Indices(&[2])],
            &[attr_int("batch_axis", 0), attr_int("time_axis", 1)],
            "[a! b! c], [.] -> [a! b! c]",
        ),
    ]
}

//! Elementwise operators, and sources of values.

use onnx_diffprune::onnx::{attr_float, attr_int, attr_ints};

use super::In::{Int, Ints, Omitted, Truth, W, X};
use super::{Case, case, check, in_opset, network, outputs};
use crate::decided::body;
use crate::support::builder::value_of;

/// Operators of one input.
const UNARY: &str = "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu \
    HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin \
    Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu m:QuickGelu Identity Dropout";

/// Operators of two inputs that broadcast.
const BINARY: &str = "Add Sub Mul Div Pow Mod Min Max Mean Sum Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor \
    BitShift BitwiseAnd BitwiseOr BitwiseXor SwiGLU";

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    let x = X(&[2, 6, 8]);
    vec![
        case(UNARY, &[x], &[], "[a b c] -> [a b c]"),
        case("Cast", &[x], &[attr_int("to", 10)], "[a b c] -> [a b c]"),
        case("CastLike", &[x, X(&[3])], &[], "[a b c], [d] -> [a b c]"),
        outputs(2, "Dropout", &[x, W(&[])], &[], "[a b c], [] -> [a b c], [a b c]"),
        case("Clip", &[x, W(&[]), W(&[])], &[], "[a b c], [], [] -> [a b c]"),
        case("Clip", &[x, Omitted, W(&[])], &[], "[a b c], -, [] -> [a b c]"),
        in_opset(10, "Clip", &[x], &[attr_float("min", 0.0)], "[a b c] -> [a b c]"),
        case(BINARY, &[x, x], &[], "[a b c], [a b c] -> [a b c]"),
        case(BINARY, &[x, W(&[6, 1])], &[], "[a b c], [b 1] -> [a b c]"),
        case("Add Mul", &[W(&[8]), x], &[], "[a], [b c a] -> [b c a]"),
        case("Add Mul", &[x, W(&[])], &[], "[a b c], [] -> [a b c]"),
        case("Add Mul", &[X(&[2, 1, 8]), X(&[6, 1])], &[], "[a 1 b], [c 1] -> [a c b]"),
        case("Sum Max Min Mean", &[x, W(&[8]), X(&[1, 6, 8])], &[], "[a b c], [c], [1 b c] -> [a b c]"),
        case("Sum Max", &[x], &[], "[a b c] -> [a b c]"),
        case("PRelu", &[x, W(&[6, 1])], &[], "[a b c], [b 1] -> [a b c]"),
        case("PRelu", &[x, W(&[1])], &[], "[a b c], [1] -> [a b c]"),
        case("Where", &[Truth(&[6, 1]), x, X(&[8])], &[], "[a 1], [b a c], [c] -> [b a c]"),
        case("Where", &[Truth(&[1]), x, W(&[])], &[], "[1], [a b c], [] -> [a b c]"),
        // One scale, or one for every index of `axis`.
        case(QUANTIZE, &[x, W(&[]), Omitted], &[], "[a b c], [], - -> [a b c]"),
        case(QUANTIZE, &[x, W(&[6])], &[attr_int("axis", 1)], "[a b c], [b] -> [a b c]"),
        case(QUANTIZE, &[x, W(&[8])], &[attr_int("axis", -1)], "[a b c], [c] -> [a b c]"),
        case("Constant", &[], &[attr_ints("value_ints", &[1, 2])], "computed ahead of time"),
        // An axis of equal elements follows the axis it is combined with.
        case("ConstantOfShape", &[Ints(&[2, 6])], &[], "[.] -> [a* b*]"),
        case("ConstantOfShape", &[Ints(&[6])], &[], "[1] -> [.]"),
        case("Range", &[Int(0), Int(6), Int(1)], &[], "[], [], [] -> [.]"),
        case("RandomNormal RandomUniform", &[], &[attr_ints("shape", &[2, 6])], "-> [. .]"),
        // Sampling fewer random numbers would change the others.
        case("RandomNormalLike RandomUniformLike Bernoulli", &[x], &[], "[a! b! c!] -> [. . .]"),
        case("Multinomial", &[X(&[2, 6])], &[attr_int("sample_size", 3)], "[a! b!] -> [. .]"),
        network("If", "[] -> [. .] {barrier: which branch runs is only known at run time}", |net| {
            net.graph.input = vec![value_of("condition", 9, Some(&[])), value_of("x", 1, Some(&["2", "6"]))];
            let branches = [body("then_branch", "Relu", &["x"]), body("else_branch", "Exp", &["x"])];
            net.op("If", &["condition"], &branches);
        }),
    ]
}

const QUANTIZE: &str = "QuantizeLinear DequantizeLinear m:QuantizeLinear m:DequantizeLinear";

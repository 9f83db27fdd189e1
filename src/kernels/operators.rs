//! The kernels as custom operators of ONNX Runtime.

use std::sync::Mutex;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;
use pulp::Arch;

use super::norm::NormForm;
use super::proof::{self, ProofOperator};
use super::winograd::WinogradNode;
use super::{
    NORM, NORM_GRADIENT, SILU_GRADIENT, SOFTMAX_GRADIENT, TASK_ELEMENTS, WINOGRAD_CONV, WINOGRAD_FILTER,
    WINOGRAD_FILTER_GRADIENT, WINOGRAD_PRODUCTS, activation, norm, rows_of, softmax, tasks,
};

/// Returns the operators of [`super::DOMAIN`].
pub(crate) fn domain() -> ort::Result<OperatorDomain> {
    let name = |op_type: &'static str| KernelOperator { op_type };
    let mut domain = OperatorDomain::new(super::DOMAIN)?;
    for kind in proof::OPERATORS {
        domain = domain.add(ProofOperator::<f32>::new(kind))?.add(ProofOperator::<f64>::new(kind))?;
    }
    domain
        .add(name(NORM))?
        .add(name(NORM_GRADIENT))?
        .add(name(SILU_GRADIENT))?
        .add(name(SOFTMAX_GRADIENT))?
        .add(name(WINOGRAD_CONV))?
        .add(name(WINOGRAD_PRODUCTS))?
        .add(name(WINOGRAD_FILTER))?
        .add(name(WINOGRAD_FILTER_GRADIENT))
}

struct KernelOperator {
    op_type: &'static str,
}

impl Operator for KernelOperator {
    type Kernel<'attr> = NodeKernel;

    fn name(&self) -> &str {
        self.op_type
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (required, optional) = match self.op_type {
            NORM => (3, 0),
            NORM_GRADIENT => (4, 0),
            WINOGRAD_CONV => (2, 1),
            WINOGRAD_FILTER | WINOGRAD_FILTER_GRADIENT => (1, 0),
            _ => (2, 0),
        };
        let required = (0..required).map(|_| OperatorInput::required(Float32));
        required.chain((0..optional).map(|_| OperatorInput::optional(Float32)))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let count = if self.op_type == NORM_GRADIENT { 3 } else { 1 };
        (0..count).map(|_| OperatorOutput::required(Float32))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<NodeKernel> {
        let size = |name: &str| {
            let size = context.get::<i64>(name).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            size.ok_or_else(|| {
                ort::Error::new(format!("{}: attribute {name}: expected a positive integer", self.op_type))
            })
        };
        let form = || -> ort::Result<NormForm> {
            Ok(NormForm {
                row: size("row")?,
                groups: size("groups")?,
                inner: size("inner")?,
                epsilon: context.get::<f32>("epsilon").unwrap_or(0.0),
                is_centred: context.get::<i64>("centred") != Some(0),
                has_silu: context.get::<i64>("silu") == Some(1),
            })
        };
        Ok(match self.op_type {
            NORM => NodeKernel::Norm(form()?),
            NORM_GRADIENT => NodeKernel::NormGradient(form()?),
            SOFTMAX_GRADIENT => NodeKernel::SoftmaxGradient { row: size("row")? },
            SILU_GRADIENT => NodeKernel::SiluGradient,
            other => NodeKernel::Winograd(WinogradNode::new(other, context)?),
        })
    }
}

/// A node's kernel with its attributes.
enum NodeKernel {
    Norm(NormForm),
    NormGradient(NormForm),
    SoftmaxGradient { row: usize },
    SiluGradient,
    Winograd(WinogradNode),
}

impl Kernel for NodeKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        match self {
            Self::Norm(form) => compute_norm(context, form),
            Self::NormGradient(form) => compute_norm_gradient(context, form),
            Self::SoftmaxGradient { row } => {
                let row = *row;
                pairwise(
                    context,
                    row,
                    #[inline(always)]
                    |y, dy, dx| softmax::softmax_gradient(y, dy, dx, row),
                )
            }
            Self::SiluGradient => pairwise(context, 1, activation::silu_gradient),
            Self::Winograd(node) => node.compute(context),
        }
    }
}

pub(super) fn missing(what: &str, at: usize) -> ort::Error {
    ort::Error::new(format!("{what} {at} is missing"))
}

/// Returns the error for tensors whose sizes do not fit the attributes.
fn unfit(form: &NormForm, elements: usize, parameters: [usize; 2]) -> ort::Error {
    let wanted = form.parameters();
    ort::Error::new(format!(
        "expected whole rows of {} elements with {wanted} scales and offsets, found {elements} elements, {} and {}",
        form.row, parameters[0], parameters[1]
    ))
}

/// Splits a slice into parts of these lengths, each for one task of a parallel loop.
pub(super) fn parts(mut values: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<Mutex<&mut [f32]>> {
    let mut parts = Vec::new();
    for length in lengths {
        let (part, rest) = values.split_at_mut(length);
        parts.push(Mutex::new(part));
        values = rest;
    }
    parts
}

fn compute_norm(context: &ComputeContext, form: &NormForm) -> ort::Result<()> {
    let input = |at: usize| context.input(at)?.ok_or_else(|| missing("input", at));
    let (x, scale, offset) = (input(0)?, input(1)?, input(2)?);
    let (shape, x) = x.try_extract_tensor::<f32>()?;
    let (scale, offset) = (scale.try_extract_tensor::<f32>()?.1, offset.try_extract_tensor::<f32>()?.1);
    if !form.fits(x.len()) || [scale.len(), offset.len()] != [form.parameters(); 2] {
        return Err(unfit(form, x.len(), [scale.len(), offset.len()]));
    }
    let mut y = context.output(0, shape.to_vec())?.ok_or_else(|| missing("output", 0))?;
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let rows = x.len() / form.row;
    let tasks = tasks(rows, form.row);
    let y = parts(y, (0..tasks).map(|at| rows_of(at, tasks, rows).len() * form.row));
    context.par_for(tasks, 0, |at| {
        let rows = rows_of(at, tasks, rows);
        let x = &x[rows.start * form.row..rows.end * form.row];
        if let Ok(mut y) = y[at].lock() {
            Arch::new().dispatch(
                #[inline(always)]
                || norm::forward(form, rows.start, x, scale, offset, &mut y),
            );
        }
    })
}

fn compute_norm_gradient(context: &ComputeContext, form: &NormForm) -> ort::Result<()> {
    let input = |at: usize| context.input(at)?.ok_or_else(|| missing("input", at));
    let (x, dy, scale, offset) = (input(0)?, input(1)?, input(2)?, input(3)?);
    let (shape, x) = x.try_extract_tensor::<f32>()?;
    let dy = dy.try_extract_tensor::<f32>()?.1;
    let (scale, offset) = (scale.try_extract_tensor::<f32>()?.1, offset.try_extract_tensor::<f32>()?.1);
    let parameters = form.parameters();
    if !form.fits(x.len()) || x.len() != dy.len() || [scale.len(), offset.len()] != [parameters; 2] {
        return Err(unfit(form, x.len().max(dy.len()), [scale.len(), offset.len()]));
    }
    let mut dx = context.output(0, shape.to_vec())?.ok_or_else(|| missing("output", 0))?;
    let (_, dx) = dx.try_extract_tensor_mut::<f32>()?;
    let rows = x.len() / form.row;
    let tasks = tasks(rows, form.row);
    let dx = parts(dx, (0..tasks).map(|at| rows_of(at, tasks, rows).len() * form.row));
    // Every task has its own sums. They are added in the order of the tasks.
    let mut sums = vec![0.0f32; tasks * 2 * parameters];
    {
        let sums = parts(&mut sums, (0..tasks).map(|_| 2 * parameters));
        context.par_for(tasks, 0, |at| {
            let rows = rows_of(at, tasks, rows);
            let span = rows.start * form.row..rows.end * form.row;
            if let (Ok(mut dx), Ok(mut sums)) = (dx[at].lock(), sums[at].lock()) {
                let sums = sums.split_at_mut(parameters);
                let (x, dy) = (&x[span.clone()], &dy[span]);
                Arch::new().dispatch(
                    #[inline(always)]
                    || norm::gradient(form, rows.start, (x, dy), (scale, offset), &mut dx, sums),
                );
            }
        })?;
    }
    for slot in 0..2 {
        let mut sum = context.output(1 + slot, [parameters])?.ok_or_else(|| missing("output", 1 + slot))?;
        let (_, sum) = sum.try_extract_tensor_mut::<f32>()?;
        for (channel, sum) in sum.iter_mut().enumerate() {
            *sum = (0..tasks).map(|at| sums[(2 * at + slot) * parameters + channel]).sum();
        }
    }
    Ok(())
}

/// Runs a kernel that computes `dx` from two inputs of the same shape, in whole rows.
fn pairwise(
    context: &ComputeContext,
    row: usize,
    compute: impl Fn(&[f32], &[f32], &mut [f32]) + Send + Sync,
) -> ort::Result<()> {
    let input = |at: usize| context.input(at)?.ok_or_else(|| missing("input", at));
    let (a, b) = (input(0)?, input(1)?);
    let (shape, a) = a.try_extract_tensor::<f32>()?;
    let b = b.try_extract_tensor::<f32>()?.1;
    if a.len() != b.len() || !a.len().is_multiple_of(row) {
        let (a, b) = (a.len(), b.len());
        return Err(ort::Error::new(format!(
            "expected two inputs of equal size in whole rows of {row}, found {a} and {b} elements"
        )));
    }
    let mut dx = context.output(0, shape.to_vec())?.ok_or_else(|| missing("output", 0))?;
    let (_, dx) = dx.try_extract_tensor_mut::<f32>()?;
    let rows = a.len() / row;
    let tasks = a.len().div_ceil(TASK_ELEMENTS).clamp(1, 64).min(rows.max(1));
    let dx = parts(dx, (0..tasks).map(|at| rows_of(at, tasks, rows).len() * row));
    context.par_for(tasks, 0, |at| {
        let rows = rows_of(at, tasks, rows);
        let span = rows.start * row..rows.end * row;
        if let Ok(mut dx) = dx[at].lock() {
            let (a, b) = (&a[span.clone()], &b[span]);
            Arch::new().dispatch(
                #[inline(always)]
                || compute(a, b, &mut dx),
            );
        }
    })
}

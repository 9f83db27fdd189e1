//! Code for the widest vectors of the machine.
//!
//! What is compiled for every x86-64 machine uses vectors of 128 bits. The same code is compiled a second time for those of
//! 256 bits, and chosen when the program runs. The results are the same: the order of all sums is written out in lanes, and
//! no products and sums are contracted.

/// Calls a function that is always inlined, with the widest vectors that there are.
pub(super) fn widest<R>(compute: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has what the function is compiled for.
        #[expect(unsafe_code, reason = "compiled for instructions that were found on the machine")]
        return unsafe { with_avx2(compute) };
    }
    compute()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(compute: impl FnOnce() -> R) -> R {
    compute()
}

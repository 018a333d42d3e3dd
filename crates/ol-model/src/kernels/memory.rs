//! Memory for weights.
#![expect(unsafe_code, reason = "advice to the kernel about memory that is ours")]

/// Smallest buffer worth the question.
const MIN_SIZE_BYTES: usize = 1 << 20;

/// `n` copies of `value`, on huge pages where the system has them: a matrix is
/// read through once a token, and with small pages the lookups and the
/// prefetchers' stops at their ends cost a third of the bandwidth.
pub(crate) fn filled<T: Copy>(value: T, n: usize) -> Vec<T> {
    let mut all: Vec<T> = Vec::with_capacity(n);
    #[cfg(target_os = "linux")]
    ask_for_huge_pages(all.spare_capacity_mut());
    all.resize(n, value);
    all
}

/// Before the first touch, for pages have their size from then on.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    use rustix::mm::{Advice, madvise};

    let (start, size) = (memory.as_mut_ptr().cast::<u8>(), size_of_val(memory));
    if size < MIN_SIZE_BYTES {
        return;
    }
    // Only whole pages may be named.
    let skipped = start.align_offset(rustix::param::page_size());
    if skipped < size {
        // SAFETY: the range is allocated and ours; the advice changes no
        // content. That it is not taken is no error.
        let _ = unsafe {
            madvise(
                start.add(skipped).cast(),
                size - skipped,
                Advice::LinuxHugepage,
            )
        };
    }
}

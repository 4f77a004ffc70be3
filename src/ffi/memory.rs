//! What the allocator of the C library is asked for. Another C library than glibc is left alone.

/// Allocations of this size and more are mapped by themselves and go back whole when they are freed:
/// what slow receivers are owed, and the table of the pairs. glibc starts with half of it, but takes
/// a larger bound from every such allocation that is freed, and keeps the next one of that size.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 256 * 1024;
/// Free memory that stays at the end of an arena. Given, since the bound above turns glibc's own
/// rule off, which would give back what the next handshakes need at once.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 1024 * 1024;

/// Settles what goes back to the operating system by itself. To be called before there are threads.
pub(crate) fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers, and no thread that allocates meanwhile. What it refuses stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Gives free memory back to the operating system, also from between what is in use.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, may be called at any time on any thread, and releases free
    // memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

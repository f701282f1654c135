//! The program: it runs what the command line says.

/// A miss has some ninety allocations, many of them of several KiB, which the C library's allocator searches its lists for:
/// this one takes a third off a miss and a tenth off hits over many responses (docs/performance.md). Its own threads give back
/// what was not used for some 10 s, though the workers be idle. `_RJEM_MALLOC_CONF` in the environment sets its options.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    aside::cli::run()
}

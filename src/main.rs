//! The program: it runs what the command line says.

fn main() -> std::process::ExitCode {
    aside::cli::run()
}

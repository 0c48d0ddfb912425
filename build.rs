//! How the binary is linked; the libraries and tests are left alone, so nothing else is compiled again.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    // Where it was tried.
    if is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
    {
        // A fifth of the file. Functions keep their names, for backtraces and profiles.
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-debug");
    }
}

//! The control command, built once where it may be older than the sources.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::Proxy;

/// A `kakehictl` without arguments and without a socket in its environment.
pub(crate) fn kakehictl() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PROGRAM.get_or_init(build));
    command.env_remove("KAKEHI_SOCKET");
    command
}

/// What a verb says; it must be carried out.
#[track_caller]
pub(crate) fn ctl(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = proxy.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", proxy.log());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All that a verb says, on both outputs; it must be carried out.
#[track_caller]
pub(crate) fn ctl_says(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = proxy.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", proxy.log());
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

/// All that shows what is configured to whoever asks, and the log: no secret may stand there.
pub(crate) fn shown_to_anybody(proxy: &Proxy) -> Vec<String> {
    let url = format!("http://a:{}/staff", proxy.address().port());
    let verbs = [
        &["config", "dump"][..],
        &["explain", &url],
        &["--json", "explain", &url],
        &["config", "diff"],
        &["state"],
        &["--json", "state"],
        &["--json", "config", "dump"],
        &["cluster", "list"],
        &["--json", "frontend", "list"],
        &["backends"],
        &["status"],
    ];
    verbs.into_iter().map(|verb| ctl_says(proxy, verb)).chain([proxy.log()]).collect()
}

/// What is said to a verb that is refused; it must change nothing.
#[track_caller]
pub(crate) fn refused(proxy: &Proxy, arguments: &[&str]) -> String {
    let before = ctl(proxy, &["state"]);
    let output = proxy.ctl(arguments);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {output:?}");
    assert_eq!(ctl(proxy, &["state"]), before, "{arguments:?} changed something");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A `kakehictl` of another user for the socket of `proxy`: takes root and `setpriv`.
pub(crate) fn kakehictl_of(uid: u32, proxy: &Proxy) -> Command {
    fs::set_permissions(proxy.folder(), fs::Permissions::from_mode(0o755)).expect("chmod");
    // Where it was built, not everybody may go.
    let copy = proxy.folder().join("kakehictl");
    if !copy.exists() {
        fs::copy(kakehictl().get_program(), &copy).expect("a copy of kakehictl");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--clear-groups"]).arg(copy).arg("-s").arg(proxy.socket());
    command.env_remove("KAKEHI_SOCKET");
    command
}

/// A test of one package builds that package's programs only. This puts the other one beside them.
fn build() -> PathBuf {
    let program = super::program().with_file_name("kakehictl");
    if std::env::var_os("KAKEHI_TEST_PROGRAMS").is_some() {
        return program;
    }
    let folder = program.parent().unwrap_or(Path::new("."));
    let mut cargo = Command::new(env!("CARGO"));
    // Of the whole workspace: with the features of dependencies that `cargo test --workspace` has built already.
    cargo.args(["build", "--quiet", "--workspace", "--bin", "kakehictl", "--target-dir"]);
    cargo.arg(folder.parent().unwrap_or(folder)).current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output();
    let built = output.as_ref().is_ok_and(|output| output.status.success());
    // Where there is no cargo any more (tests that run elsewhere), what lies there has to do.
    assert!(
        built || program.exists(),
        "no kakehictl at {} and it cannot be built: {output:?}",
        program.display()
    );
    program
}

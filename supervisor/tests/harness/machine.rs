//! What a machine must have for a test to show all that its name promises.
//!
//! A test that cannot run says so, past the test harness's capture of output, and fails where `CI` is set: CI has
//! everything. What a run of CI goes without on purpose it declares: `KAKEHI_TESTS_WITHOUT=root` (see `scripts/test --user`).

use std::{
    io::{self, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
};

/// Something that not every machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// To be another user, to look into processes of other users.
    Root,
    /// Process namespaces: root, on a host that lets it have them.
    Namespaces,
    /// Mounts of its own: root, on a host that lets it have them.
    Mounts,
    /// Networks of its own, with cables between them: root, on a host that lets it have them.
    Networks,
    /// The loopback address of IPv6.
    Ipv6,
    /// Two cores.
    TwoCores,
    /// A program of the `PATH`.
    Program(&'static str),
}

impl Need {
    fn is_there(self) -> bool {
        match self {
            Need::Root => nix::unistd::geteuid().is_root(),
            Need::Namespaces => Command::new("unshare")
                .args(["--pid", "--fork", "--mount-proc", "true"])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
            Need::Mounts => Command::new("unshare")
                .args(["--mount", "sh", "-c", "mount -t tmpfs none /mnt"])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
            Need::Networks => Command::new("unshare")
                .args(["--net", "ip", "link", "add", "name", "here0", "type", "veth"])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
            Need::Ipv6 => TcpListener::bind("[::1]:0").is_ok(),
            Need::TwoCores => thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            Need::Program(name) => std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file())),
        }
    }

    /// The word for it in `KAKEHI_TESTS_WITHOUT`.
    fn word(self) -> &'static str {
        match self {
            // Whoever is not root has none.
            Need::Root | Need::Namespaces | Need::Mounts | Need::Networks => "root",
            Need::Ipv6 => "ipv6",
            Need::TwoCores => "cores",
            Need::Program(name) => name,
        }
    }
}

/// Whether this machine has it. If not, the test goes without what needs it, or without everything.
///
/// # Panics
/// In CI, unless the run has declared that it goes without.
#[track_caller]
pub(crate) fn has(need: Need) -> bool {
    let is_there = need.is_there();
    if !is_there {
        let name = thread::current().name().unwrap_or("a test").to_owned();
        let declared = std::env::var("KAKEHI_TESTS_WITHOUT")
            .is_ok_and(|words| words.split(',').any(|word| word == need.word()));
        let _ = writeln!(io::stderr(), "SKIPPED, all or a part: {name}: this machine has no {need:?}");
        assert!(declared || std::env::var_os("CI").is_none(), "CI skips nothing, and there is no {need:?}");
    }
    is_there
}

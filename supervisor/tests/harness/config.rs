//! The configuration of one test: defaults that suit a test, and the lines that this test is about.

use std::{
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Backend, Issued, Proxy};

/// What the proxy of a test is started with.
///
/// Without a word more there is one listener and one worker that is not pinned (all tests' workers would
/// share the first core). A root key that a test sets replaces the default of this harness.
#[derive(Clone, Default)]
pub(crate) struct Config {
    root: Vec<String>,
    listeners: Vec<Listener>,
    clusters: Vec<Cluster>,
    pub(super) ipv6: bool,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) ulimits: Vec<String>,
    pub(super) refused_calls: &'static [libc::c_long],
    pub(super) program: Option<PathBuf>,
    pub(super) in_container: bool,
    pub(super) activated: Option<Arc<TcpListener>>,
    pub(super) log: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Default)]
struct Listener {
    lines: Vec<String>,
    /// Keys of each.
    certificates: Vec<String>,
}

#[derive(Clone)]
struct Cluster {
    name: String,
    keys: Vec<String>,
    /// Number of the listener, keys.
    frontends: Vec<(usize, String)>,
    backends: Vec<String>,
}

impl Config {
    /// One listener, no cluster.
    pub(crate) fn new() -> Config {
        Config { listeners: vec![Listener::default()], ..Config::default() }
    }

    /// One listener that sends everything to `backend`.
    pub(crate) fn to(backend: &Backend) -> Config {
        Config::new().frontend("all", r#"hostname = "*""#).backend("all", backend)
    }

    /// A line at the root of the file: `worker_count = 2`.
    pub(crate) fn root(mut self, line: &str) -> Config {
        self.root.push(line.to_owned());
        self
    }

    /// A line of the listener that was begun last: `request_timeout = 0.3`.
    pub(crate) fn listener(mut self, line: &str) -> Config {
        self.listeners.last_mut().expect("a listener").lines.push(line.to_owned());
        self
    }

    /// The listeners are on `::1` instead of `127.0.0.1`.
    pub(crate) fn on_ipv6(mut self) -> Config {
        self.ipv6 = true;
        self
    }

    /// Begins another listener.
    pub(crate) fn another_listener(mut self) -> Config {
        self.listeners.push(Listener::default());
        self
    }

    /// The listener that was begun last terminates TLS, with this certificate by default.
    pub(crate) fn https(self, issued: &Issued) -> Config {
        let lines = issued.keys().replace(", key", "\nkey");
        self.listener("protocol = \"https\"").listener(&lines)
    }

    /// One listener that terminates TLS and sends everything to `backend`, whatever the certificate is for.
    pub(crate) fn https_to(backend: &Backend, issued: &Issued) -> Config {
        Config::to(backend).https(issued)
    }

    /// One more certificate of the listener that was begun last, with keys of its own: `, default = true`.
    pub(crate) fn certificate(mut self, issued: &Issued, keys: &str) -> Config {
        let listener = self.listeners.last_mut().expect("a listener");
        listener.certificates.push(format!("{}{keys}", issued.keys()));
        self
    }

    /// A line of a cluster, which begins with its first mention.
    pub(crate) fn cluster(mut self, name: &str, line: &str) -> Config {
        self.cluster_named(name).keys.push(line.to_owned());
        self
    }

    /// A frontend of a cluster on the first listener: `hostname = "a.example", path = "/x"`.
    pub(crate) fn frontend(self, name: &str, keys: &str) -> Config {
        self.frontend_on(0, name, keys)
    }

    /// A frontend on the listener with this number, from 0.
    pub(crate) fn frontend_on(mut self, listener: usize, name: &str, keys: &str) -> Config {
        self.cluster_named(name).frontends.push((listener, keys.to_owned()));
        self
    }

    /// A backend of a cluster.
    pub(crate) fn backend(self, name: &str, backend: &Backend) -> Config {
        self.backend_at(name, &backend.address(), "")
    }

    /// A backend with keys of its own: `weight = 3`.
    pub(crate) fn backend_with(self, name: &str, backend: &Backend, keys: &str) -> Config {
        self.backend_at(name, &backend.address(), keys)
    }

    /// A cluster of one backend, for this host.
    pub(crate) fn site(self, name: &str, hostname: &str, backend: &Backend) -> Config {
        self.frontend(name, &format!("hostname = \"{hostname}\"")).backend(name, backend)
    }

    /// The first listener passes everything on to this backend, of a cluster of `tcp`.
    pub(crate) fn passing_on(self, name: &str, backend: &Backend) -> Config {
        let tcp = "protocol = \"tcp\"";
        self.listener(tcp).cluster(name, tcp).frontend(name, "").backend(name, backend)
    }

    /// A backend that is not one of the harness.
    pub(crate) fn backend_at(mut self, name: &str, address: &str, keys: &str) -> Config {
        let comma = if keys.is_empty() { "" } else { ", " };
        self.cluster_named(name).backends.push(format!("{{ address = \"{address}\"{comma}{keys} }}"));
        self
    }

    /// Another program than the one under test.
    pub(crate) fn program(mut self, path: &Path) -> Config {
        self.program = Some(path.to_owned());
        self
    }

    /// The proxy is process 1 of a namespace of its own; its parent ends with its exit code.
    pub(crate) fn in_container(mut self) -> Config {
        self.in_container = true;
        self
    }

    /// A listening socket that is passed to the proxy as an init system does; the first listener is at its address.
    pub(crate) fn activated(mut self, socket: TcpListener) -> Config {
        self.activated = Some(Arc::new(socket));
        self
    }

    /// Where the log goes, in the place of a file.
    pub(crate) fn log_to(mut self, log: OwnedFd) -> Config {
        self.log = Some(Arc::new(log));
        self
    }

    /// A variable in the environment of the proxy.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Config {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Arguments of the shell's `ulimit` before the proxy starts: `-n 128`.
    pub(crate) fn ulimit(mut self, arguments: &str) -> Config {
        self.ulimits.push(arguments.to_owned());
        self
    }

    /// The kernel refuses every io_uring call of the proxy, as a container's default profile does.
    pub(crate) fn without_io_uring(mut self) -> Config {
        self.refused_calls =
            &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
        self
    }

    /// The kernel refuses the proxy every call that a sandbox is made with, as one that has neither seccomp nor landlock.
    pub(crate) fn without_sandbox(mut self) -> Config {
        self.refused_calls =
            &[libc::SYS_seccomp, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self];
        self
    }

    /// Starts the proxy and waits until every listener answers.
    #[track_caller]
    pub(crate) fn start(self) -> Proxy {
        Proxy::start(self)
    }

    /// As the file names it.
    pub(super) fn command_socket(&self) -> &str {
        let named = self.root.iter().find_map(|line| line.strip_prefix("command_socket = "));
        named.map_or("kakehi.sock", |name| name.trim_matches('"'))
    }

    pub(super) fn listener_count(&self) -> usize {
        self.listeners.len()
    }

    /// Whether somebody who asks this listener for HTTP in clear text gets an answer of kakehi's own.
    pub(super) fn answers_http(&self, listener: usize) -> bool {
        let lines = &self.listeners[listener].lines;
        !lines.iter().any(|line| line.contains("expect_proxy") || line == "protocol = \"tcp\"")
    }

    /// The file, with these addresses for the listeners.
    pub(crate) fn text(&self, addresses: &[SocketAddr]) -> String {
        let mut text = String::new();
        for default in
            ["command_socket = \"kakehi.sock\"", "worker_count = 1", "handle_process_affinity = false"]
        {
            let key = default.split(' ').next().unwrap_or(default);
            if !self.root.iter().any(|line| line.starts_with(key)) {
                text += &format!("{default}\n");
            }
        }
        for line in &self.root {
            text += &format!("{line}\n");
        }
        let http = |lines: &[String]| {
            let given = lines.iter().any(|line| line.starts_with("protocol = "));
            if given { "" } else { "protocol = \"http\"\n" }
        };
        for (Listener { lines, certificates }, address) in self.listeners.iter().zip(addresses) {
            text += &format!("\n[[listeners]]\naddress = \"{address}\"\n{}", http(lines));
            for line in lines {
                text += &format!("{line}\n");
            }
            for keys in certificates {
                text += &format!("[[listeners.certificates]]\n{}\n", keys.replace(", ", "\n"));
            }
        }
        for cluster in &self.clusters {
            text += &format!("\n[clusters.{}]\n{}", cluster.name, http(&cluster.keys));
            for line in &cluster.keys {
                text += &format!("{line}\n");
            }
            text += "frontends = [\n";
            for (listener, keys) in &cluster.frontends {
                let comma = if keys.is_empty() { "" } else { ", " };
                text += &format!("  {{ address = \"{}\"{comma}{keys} }},\n", addresses[*listener]);
            }
            text += "]\nbackends = [\n";
            for backend in &cluster.backends {
                text += &format!("  {backend},\n");
            }
            text += "]\n";
        }
        text
    }

    fn cluster_named(&mut self, name: &str) -> &mut Cluster {
        let place = self.clusters.iter().position(|cluster| cluster.name == name).unwrap_or_else(|| {
            self.clusters.push(Cluster {
                name: name.to_owned(),
                keys: Vec::new(),
                frontends: Vec::new(),
                backends: Vec::new(),
            });
            self.clusters.len() - 1
        });
        &mut self.clusters[place]
    }
}

//! The proxies of the comparison: where they are found and how each is configured.
//!
//! All get the same duties: one worker, HTTP/1.1 with keep-alive on both sides, the client's `Host` and an
//! `X-Forwarded-For` to the backend, no access log, enough connections. Beyond that they keep their defaults.
//! With an [`Identity`] they speak TLS with clients, and clear text with the backend all the same.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::generator::tls::Tls;
use crate::identity::Identity;
use crate::process::Program;
use crate::{Attempt, BenchError};

mod configs;

use configs::Site;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The proxy of this repository.
    Kakehi,
    /// A relay on kakehi's ring without HTTP: what is left when a proxy does nothing.
    Floor,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// sozu.
    Sozu,
    /// Envoy.
    Envoy,
    /// No proxy at all: shows that the load and the backend are faster than what they measure.
    Direct,
}

impl Kind {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Kakehi, "kakehi"),
        (Self::Floor, "floor"),
        (Self::Nginx, "nginx"),
        (Self::Haproxy, "haproxy"),
        (Self::Sozu, "sozu"),
        (Self::Envoy, "envoy"),
        (Self::Direct, "direct"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Whether it is configured for TLS here. The floor and the backend know none; Envoy is nobody's measure.
    #[must_use]
    pub fn speaks_tls(self) -> bool {
        matches!(self, Self::Kakehi | Self::Nginx | Self::Haproxy | Self::Sozu)
    }

    /// Whether it is configured here to pass on bytes without knowing HTTP. nginx has a module of its own for that.
    #[must_use]
    pub fn passes_tcp(self) -> bool {
        matches!(self, Self::Kakehi | Self::Floor | Self::Haproxy | Self::Sozu | Self::Direct)
    }

    /// Whether it is configured here with policies (the case `policy`).
    #[must_use]
    pub fn has_policies(self) -> bool {
        matches!(self, Self::Kakehi | Self::Nginx | Self::Haproxy)
    }

    /// Whether it is configured here to make tunnels of connections that ask for that.
    #[must_use]
    pub fn makes_tunnels(self) -> bool {
        self != Self::Envoy
    }
}

/// What a proxy knows of what it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Requests and responses.
    Http,
    /// Bytes.
    Tcp,
    /// Requests and responses, and what the policies of the case `policy` need.
    Policy,
}

/// One proxy, found.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Which proxy.
    pub kind: Kind,
    /// The value of `KAKEHI_IO_URING_LEVEL` that it gets, if any.
    pub level: Option<u8>,
    program: PathBuf,
}

impl Peer {
    /// Finds the proxy called `name`: `kakehi`, `floor`, `nginx`, `haproxy`, `sozu`, `envoy`, `direct`, or `kakehi@N` for kakehi
    /// with the kernel features of level N. `built` is the folder of this workspace's release programs.
    /// `KAKEHI_BENCH_<NAME>` says where a program is, else it is looked up in `PATH` (and `/usr/sbin`).
    /// `None` if it is not installed.
    ///
    /// # Errors
    /// If no proxy has that name, or the environment names a program that is not there.
    pub fn find(name: &str, built: &Path) -> Result<Option<Self>, BenchError> {
        let (base, level) = match name.split_once('@') {
            Some((base, level)) => (base, Some(level.parse::<u8>().map_err(|_| unknown(name))?)),
            None => (name, None),
        };
        let (kind, _) =
            Kind::ALL.into_iter().find(|(_, known)| *known == base).ok_or_else(|| unknown(name))?;
        if level.is_some() && kind != Kind::Kakehi {
            return Err(unknown(name));
        }
        let variable = format!("KAKEHI_BENCH_{}", base.to_uppercase());
        let program = match (std::env::var_os(&variable), kind) {
            (Some(path), _) => {
                let path = PathBuf::from(path);
                if !path.is_file() {
                    return Err(BenchError::Usage(format!("{variable}={}: no such program", path.display())));
                }
                Some(path)
            }
            (None, Kind::Direct) => Some(PathBuf::new()),
            (None, Kind::Kakehi | Kind::Floor) => Some(built.join(base)).filter(|path| path.is_file()),
            (None, _) => in_path(base),
        };
        Ok(program.map(|program| Self { kind, level, program }))
    }

    /// `nginx`, or `kakehi@2`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.level {
            Some(level) => format!("{}@{level}", self.kind.name()),
            None => self.kind.name().to_owned(),
        }
    }

    /// What the program says of its version, and of the OpenSSL that it runs with if it does; empty for those of
    /// this repository that say none.
    #[must_use]
    pub fn version(&self) -> String {
        let argument = match self.kind {
            Kind::Direct | Kind::Floor => return String::new(),
            Kind::Nginx => "-V",
            Kind::Haproxy => "-vv",
            Kind::Kakehi | Kind::Sozu | Kind::Envoy => "--version",
        };
        let Ok(output) = Command::new(&self.program).arg(argument).output() else { return String::new() };
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let version = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let openssl = said.lines().map(str::trim).find(|line| {
            line.starts_with("built with OpenSSL") || line.starts_with("Running on OpenSSL version")
        });
        openssl.map_or_else(|| version.to_owned(), |openssl| format!("{version}; {openssl}"))
    }

    /// Writes the configuration into `folder` and says how to run it; `None` for [`Kind::Direct`]. With an identity
    /// the proxy speaks TLS, which only those do that [`Kind::speaks_tls`] names.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn prepare(
        &self,
        folder: &Path,
        listen: SocketAddr,
        backend: SocketAddr,
        layer: Layer,
        secure: Option<(&Identity, Tls)>,
    ) -> Result<Option<Program>, BenchError> {
        let (identity, tls) = secure.unzip();
        let files = identity.map(|identity| identity.write(folder)).transpose()?;
        let site = Site { folder, listen, backend, layer, tls: files.as_ref() };
        let mut command = Command::new(&self.program);
        let config = |file: &str, text: String| {
            let path = folder.join(file);
            fs::write(&path, text).attempt(|| format!("cannot write {}", path.display()))?;
            Ok::<_, BenchError>(path)
        };
        match self.kind {
            Kind::Direct => return Ok(None),
            Kind::Floor => command.args([listen.to_string(), backend.to_string()]),
            Kind::Kakehi => {
                let path = config("kakehi.toml", configs::kakehi(&site))?;
                if let Some(level) = self.level {
                    command.env("KAKEHI_IO_URING_LEVEL", level.to_string());
                }
                command.args(["start", "-c"]).arg(path)
            }
            Kind::Sozu => {
                let path = config("sozu.toml", configs::sozu(&site))?;
                command.args(["start", "-c"]).arg(path)
            }
            Kind::Nginx => {
                let path = config("nginx.conf", configs::nginx(&site))?;
                command.arg("-p").arg(folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(path)
            }
            Kind::Haproxy => {
                let path = config("haproxy.cfg", configs::haproxy(&site))?;
                command.arg("-db").arg("-f").arg(path)
            }
            Kind::Envoy => {
                let path = config("envoy.yaml", configs::envoy(&site))?;
                command
                    .args(["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"])
                    .arg(path)
            }
        };
        let log = folder.join("output.log");
        Ok(Some(Program { name: self.name(), command, listen, tls, log }))
    }

    /// Where kakehi, prepared in `folder`, answers `kakehictl`; `None` for all others.
    #[must_use]
    pub fn control_socket(&self, folder: &Path) -> Option<PathBuf> {
        (self.kind == Kind::Kakehi).then(|| configs::control_socket(folder))
    }
}

fn unknown(name: &str) -> BenchError {
    let names = Kind::ALL.map(|(_, name)| name).join(", ");
    BenchError::Usage(format!("no proxy is called {name}: there are {names}, and kakehi@0 to kakehi@4"))
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_found_by_its_name_and_level() {
        let none = Path::new("/nonexistent");
        assert_eq!(Peer::find("direct", none).unwrap().unwrap().name(), "direct");
        assert!(Peer::find("floor", none).unwrap().is_none());
        for wrong in ["squid", "nginx@1", "kakehi@x", ""] {
            assert!(Peer::find(wrong, none).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_kind_stands_in_the_table_at_its_place() {
        for (kind, name) in Kind::ALL {
            assert_eq!(kind.name(), name);
        }
    }
}

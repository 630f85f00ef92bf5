//! The command `demo`: the proxy in front of a backend of its own, to be tried with `curl`.
//!
//! The configuration is the text of `demo.toml`, read by the same code as any file; only the addresses and the
//! command socket are filled in. The backend is a task beside the supervisor.

mod backend;

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
};

use kakehi_ctl::config;
use nix::unistd::User;

use crate::begin;

/// The configuration, with names in braces for what is known only now.
/// Whom the workers become when root runs the demo.
const UNPRIVILEGED: &str = "nobody";
const CONFIGURATION: &str = include_str!("demo.toml");

/// Runs the demo on `listen`, or on a free port of 127.0.0.1.
pub(crate) fn run(listen: Option<SocketAddr>) -> ExitCode {
    let prepared = listen.map_or_else(free_address, Ok).and_then(|address| {
        let backend = TcpListener::bind("127.0.0.1:0")?;
        backend.set_nonblocking(true)?;
        Ok((address, backend.local_addr()?, backend))
    });
    let (address, backend_address, backend) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            crate::logging::complain(format_args!("the demo finds no port: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let socket = command_socket();
    let text = configuration(address, backend_address, &socket);
    let mut loaded = match config::parse(&text, "demo.toml") {
        Ok(loaded) => loaded,
        Err(error) => {
            crate::logging::complain(error);
            return ExitCode::FAILURE;
        }
    };
    if rustix::process::geteuid().is_root() && matches!(User::from_name(UNPRIVILEGED), Ok(Some(_))) {
        loaded.state.settings.user = Some(UNPRIVILEGED.to_owned());
    }
    begin::block_on(async {
        tokio::spawn(backend::serve(backend));
        let advice = advice(address, backend_address, &socket);
        // Nobody may be there to read it.
        begin::serve(loaded, None, || drop(writeln!(io::stdout(), "{advice}"))).await
    })
}

/// A port that is free now; somebody may be quicker, and then the start says so.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn command_socket() -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    folder.join(format!("kakehi-demo-{}.sock", std::process::id()))
}

fn configuration(listen: SocketAddr, backend: SocketAddr, socket: &std::path::Path) -> String {
    CONFIGURATION
        .replace("{listen}", &listen.to_string())
        .replace("{backend}", &backend.to_string())
        .replace("{socket}", &socket.display().to_string())
}

fn advice(address: SocketAddr, backend: SocketAddr, socket: &std::path::Path) -> String {
    format!(
        "\nkakehi listens on http://{address} and forwards to a backend on {backend} that echoes what it gets.\n\
         Try:\n\
         \n    curl -i http://{address}/hello\
         \n    curl -i http://{address}/upload -d 'some text'\
         \n    curl -i http://{address}/private\
         \n\nand `kakehictl -s {socket} workers`. Ctrl-C stops.\n",
        socket = socket.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_loads_without_a_warning() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        let backend = SocketAddr::from(([127, 0, 0, 1], 9000));
        let text = configuration(listen, backend, std::path::Path::new("/run/demo.sock"));
        let loaded = config::parse(&text, "demo.toml").unwrap();
        assert!(loaded.warnings.is_empty());
        assert!(loaded.state.listeners.contains_key(&listen));
        assert_eq!(loaded.state.settings.command_socket, PathBuf::from("/run/demo.sock"));
    }
}

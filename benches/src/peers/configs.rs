//! The configuration of each proxy.
//!
//! Where a value is not a default, a comment says which unfairness or failure of the run it prevents.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::generator::HOST;

/// Connections a proxy must be able to take: the idle case holds six thousand.
const CONNECTIONS: usize = 8_000;
/// Idle upstream connections that may be kept: as many as clients in the widest case, so that no proxy
/// opens new ones all the time.
const UPSTREAM_IDLE: usize = 1_024;

pub(super) fn kakehi(folder: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
    format!("{}{}", global(&control_socket(folder), ""), routes(listen, backend))
}

pub(super) fn control_socket(folder: &Path) -> PathBuf {
    folder.join("kakehi.sock")
}

/// The same file, with what sozu needs to hold six thousand connections.
pub(super) fn sozu(folder: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
    let socket = folder.join("sozu.sock");
    let buffers = format!("max_buffers = {}\nlog_level = \"error\"\n", 2 * CONNECTIONS);
    format!("{}{}", global(&socket, &buffers), routes(listen, backend))
}

fn global(socket: &Path, more: &str) -> String {
    format!(
        "command_socket = \"{}\"\nworker_count = 1\nmax_connections = {CONNECTIONS}\n{more}\n",
        socket.display()
    )
}

fn routes(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        r#"[[listeners]]
address = "{listen}"
protocol = "http"

[clusters.bench]
protocol = "http"
frontends = [{{ address = "{listen}", hostname = "{HOST}" }}]
backends = [{{ address = "{backend}" }}]
"#
    )
}

/// `keepalive_requests`: the default closes every connection after a thousand requests.
/// `proxy_max_temp_file_size 0`: the default writes big bodies to disk when the client is slower.
pub(super) fn nginx(folder: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
    // As root nginx would switch to a user that may not enter the folder.
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        r#"{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
worker_rlimit_nofile {files};
events {{
    worker_connections {files};
}}
http {{
    access_log off;
{temporary}    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    proxy_max_temp_file_size 0;
    upstream bench {{
        server {backend};
        keepalive {UPSTREAM_IDLE};
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen {listen} backlog=4096;
        server_name {HOST};
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"#,
        files = 2 * CONNECTIONS
    )
}

/// One process with one thread; the process is the worker.
pub(super) fn haproxy(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        r"global
    nbthread 1
    maxconn {CONNECTIONS}

defaults
    mode http
    option http-keep-alive
    option forwardfor
    http-reuse always
    timeout connect 3s
    timeout client 600s
    timeout server 30s
    timeout http-keep-alive 600s

frontend bench
    bind {listen} backlog 4096
    default_backend bench

backend bench
    server bench {backend}
"
    )
}

/// `x-envoy` headers are left out, and circuit breakers opened: the default lets 1,024 requests through.
pub(super) fn envoy(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        r#"static_resources:
  listeners:
  - name: bench
    address: {{ socket_address: {{ address: {listen_ip}, port_value: {listen_port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: HTTP1
          use_remote_address: true
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: bench
              domains: ["{HOST}"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: bench, timeout: 30s }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: bench
    type: STATIC
    connect_timeout: 3s
    circuit_breakers:
      thresholds:
      - {{ max_connections: {CONNECTIONS}, max_pending_requests: {CONNECTIONS}, max_requests: {CONNECTIONS} }}
    load_assignment:
      cluster_name: bench
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {backend_ip}, port_value: {backend_port} }} }} }}
"#,
        listen_ip = listen.ip(),
        listen_port = listen.port(),
        backend_ip = backend.ip(),
        backend_port = backend.port(),
    )
}

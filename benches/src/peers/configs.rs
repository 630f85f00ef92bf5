//! The configuration of each proxy.
//!
//! Where a value is not a default, a comment says which unfairness or failure of the run it prevents.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Layer;
use crate::generator::HOST;
use crate::identity::IdentityFiles;

/// Connections a proxy must be able to take: the idle case holds six thousand.
const CONNECTIONS: usize = 8_000;
/// Idle upstream connections that may be kept: as many as clients in the widest case, so that no proxy
/// opens new ones all the time.
const UPSTREAM_IDLE: usize = 1_024;

/// Policies of kakehi's cluster: passive health, retries, a choice by load, a cap of connections of an address, a rate of an address. None
/// of them refuses anything.
const POLICIES: &str = r#"load_balancing = "PEAK_EWMA"
retry_on = ["reset", "502-503"]
passive = { failure_ratio = 50 }
max_connections_per_ip = 60000
rate_limits = [{ key = "source", rate = 1000000000, burst = 1000000000 }]
"#;
/// The same of nginx: in `http`, in `upstream` and in `location`.
const NGINX_POLICIES: [&str; 3] = [
    "    limit_req_zone $binary_remote_addr zone=rate:10m rate=1000000r/s;\n    limit_conn_zone $binary_remote_addr zone=connections:10m;\n",
    "        least_conn;\n",
    "            limit_req zone=rate burst=1000000 nodelay;\n            limit_conn connections 60000;\n            proxy_next_upstream error timeout http_502 http_503;\n",
];
/// The same of HAProxy: in the frontend and in the backend.
const HAPROXY_POLICIES: [&str; 2] = [
    "    stick-table type ip size 100k expire 60s store http_req_rate(1s),conn_cur\n    tcp-request connection track-sc0 src\n    tcp-request connection reject if { sc_conn_cur(0) gt 60000 }\n    http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000000 }\n",
    "    balance leastconn\n    option redispatch\n    retry-on conn-failure empty-response 502 503\n",
];

/// What a configuration names.
pub(super) struct Site<'a> {
    pub(super) folder: &'a Path,
    pub(super) listen: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) layer: Layer,
    /// Clients are served over TLS with these.
    pub(super) tls: Option<&'a IdentityFiles>,
}

pub(super) fn kakehi(site: &Site<'_>) -> String {
    format!("{}{}", global(&control_socket(site.folder), ""), routes(site, ""))
}

pub(super) fn control_socket(folder: &Path) -> PathBuf {
    folder.join("kakehi.sock")
}

/// The same file, with what sozu needs to hold six thousand connections. Its HTTP/2 is not what is compared.
pub(super) fn sozu(site: &Site<'_>) -> String {
    let socket = site.folder.join("sozu.sock");
    let buffers = format!("max_buffers = {}\nlog_level = \"error\"\n", 2 * CONNECTIONS);
    let protocols = if site.tls.is_some() { "alpn_protocols = [\"http/1.1\"]\n" } else { "" };
    format!("{}{}", global(&socket, &buffers), routes(site, protocols))
}

fn global(socket: &Path, more: &str) -> String {
    format!(
        "command_socket = \"{}\"\nworker_count = 1\nmax_connections = {CONNECTIONS}\n{more}\n",
        socket.display()
    )
}

fn routes(site: &Site<'_>, of_listener: &str) -> String {
    let Site { listen, backend, layer, tls, .. } = site;
    if *layer == Layer::Tcp {
        return format!(
            r#"[[listeners]]
address = "{listen}"
protocol = "tcp"
[clusters.bench]
protocol = "tcp"
frontends = [{{ address = "{listen}" }}]
backends = [{{ address = "{backend}" }}]
"#
        );
    }
    let (policies, backends) = match layer {
        Layer::Policy => (
            POLICIES,
            format!(
                r#"{{ address = "{backend}", backend_id = "one" }}, {{ address = "{backend}", backend_id = "other" }}"#
            ),
        ),
        Layer::Http | Layer::Tcp => ("", format!(r#"{{ address = "{backend}" }}"#)),
    };
    let (protocol, certificate) = match tls {
        None => ("http", String::new()),
        Some(IdentityFiles { certificate, key, .. }) => {
            ("https", format!(r#", certificate = "{}", key = "{}""#, certificate.display(), key.display()))
        }
    };
    format!(
        r#"[[listeners]]
address = "{listen}"
protocol = "{protocol}"
{of_listener}
[clusters.bench]
protocol = "http"
{policies}frontends = [{{ address = "{listen}", hostname = "{HOST}"{certificate} }}]
backends = [{backends}]
"#
    )
}

/// `keepalive_requests`: the default closes every connection after a thousand requests.
/// `proxy_max_temp_file_size 0`: the default writes big bodies to disk when the client is slower.
/// Session tickets are on by default.
pub(super) fn nginx(site: &Site<'_>) -> String {
    let Site { folder, listen, backend, layer, tls } = site;
    let [in_http, in_upstream, in_location] = match layer {
        Layer::Policy => NGINX_POLICIES,
        Layer::Http | Layer::Tcp => [""; 3],
    };
    let again = if *layer == Layer::Policy { format!("        server {backend};\n") } else { String::new() };
    // As root nginx would switch to a user that may not enter the folder.
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    let (ssl, certificate) = match tls {
        None => ("", String::new()),
        Some(IdentityFiles { certificate, key, .. }) => (
            " ssl",
            format!(
                "        ssl_protocols TLSv1.2 TLSv1.3;\n        ssl_certificate {};\n        ssl_certificate_key {};\n",
                certificate.display(),
                key.display()
            ),
        ),
    };
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
{in_http}    upstream bench {{
{in_upstream}        server {backend};
{again}        keepalive {UPSTREAM_IDLE};
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen {listen}{ssl} backlog=4096;
        server_name {HOST};
{certificate}        location / {{
{in_location}            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
        location /tunnel {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection upgrade;
            proxy_set_header Upgrade $http_upgrade;
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
pub(super) fn haproxy(site: &Site<'_>) -> String {
    let Site { listen, backend, layer, tls, .. } = site;
    let mode = match layer {
        Layer::Http | Layer::Policy => {
            "mode http\n    option http-keep-alive\n    option forwardfor\n    http-reuse always"
        }
        Layer::Tcp => "mode tcp",
    };
    let [in_frontend, in_backend] = match layer {
        Layer::Policy => HAPROXY_POLICIES,
        Layer::Http | Layer::Tcp => [""; 2],
    };
    let again = if *layer == Layer::Policy { format!("    server other {backend}\n") } else { String::new() };
    let ssl =
        tls.map_or_else(String::new, |files| format!(" ssl crt {} alpn http/1.1", files.both.display()));
    format!(
        r"global
    nbthread 1
    maxconn {CONNECTIONS}

defaults
    {mode}
    timeout connect 3s
    timeout client 600s
    timeout server 30s
    timeout http-keep-alive 600s
    timeout tunnel 600s

frontend bench
    bind {listen} backlog 4096{ssl}
{in_frontend}    default_backend bench

backend bench
{in_backend}    server bench {backend}
{again}"
    )
}

/// `x-envoy` headers are left out, and circuit breakers opened: the default lets 1,024 requests through.
pub(super) fn envoy(site: &Site<'_>) -> String {
    let Site { listen, backend, .. } = site;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_named_where_tls_is_spoken_and_nowhere_else() {
        let folder = Path::new("folder");
        let [certificate, key, both] = ["c.pem", "k.pem", "b.pem"].map(|name| folder.join(name));
        let files = IdentityFiles { certificate, key, both };
        let (listen, backend) = (([127, 0, 0, 1], 8080).into(), ([127, 0, 0, 1], 9000).into());
        for write in [kakehi, sozu, nginx, haproxy] {
            let clear = write(&Site { folder, listen, backend, layer: Layer::Http, tls: None });
            assert!(!clear.contains(".pem") && !clear.contains("alpn"), "{clear}");
            let tls = write(&Site { folder, listen, backend, layer: Layer::Http, tls: Some(&files) });
            let named = ["folder/c.pem", "folder/k.pem", "folder/b.pem"].map(|path| tls.contains(path));
            assert!(named == [true, true, false] || named == [false, false, true], "{tls}");
        }
    }

    #[test]
    fn policies_are_there_in_their_case_only() {
        let (listen, backend) = (([127, 0, 0, 1], 8080).into(), ([127, 0, 0, 1], 9000).into());
        let folder = Path::new("folder");
        for (write, word) in
            [(kakehi as fn(&Site<'_>) -> String, "PEAK_EWMA"), (nginx, "least_conn"), (haproxy, "leastconn")]
        {
            let of = |layer| write(&Site { folder, listen, backend, layer, tls: None });
            let (with, without) = (of(Layer::Policy), of(Layer::Http));
            assert!(with.contains(word) && !without.contains(word), "{with}");
            let backends = |text: &str| text.matches("127.0.0.1:9000").count();
            assert_eq!((backends(&with), backends(&without)), (2, 1));
        }
    }
}

//! Programs that people use, as clients over TLS. One that is not installed is passed over, with a word.

use std::{
    fs,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use crate::harness::{Backend, Config, Issued, Need, Pki, Proxy, contains, machine, noise};

/// A proxy with TLS whose backend sends back what it was sent, or says `hello`; the second listener asks for certificates.
struct Stage {
    backend: Backend,
    pki: Pki,
    proxy: Proxy,
    me: Issued,
}

impl Stage {
    fn new() -> Stage {
        let backend = Backend::answer(|request| {
            let body = if request.body.is_empty() { b"hello".to_vec() } else { request.body.clone() };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            [head.as_bytes(), &body].concat()
        });
        let pki = Pki::new();
        let certificate = pki.issue(&["localhost", "127.0.0.1"]);
        let proxy = Config::https_to(&backend, &certificate)
            .root("worker_count = 2")
            // curl sends its large bodies only then; a renegotiation is waited for as long as a request.
            .root("continue_timeout = 0.05")
            .root("request_timeout = 2")
            .another_listener()
            .https(&certificate)
            .listener(&pki.ca("client_ca"))
            .frontend_on(1, "all", r#"hostname = "*""#)
            .start();
        let me = pki.issue_for("me");
        Stage { backend, pki, proxy, me }
    }

    fn ca(&self) -> &str {
        self.pki.authority().certificate.to_str().unwrap()
    }

    fn address(&self, listener: usize) -> String {
        format!("localhost:{}", self.proxy.address_of(listener).port())
    }

    fn url(&self, listener: usize) -> String {
        format!("https://{}/", self.address(listener))
    }
}

/// Runs a program with this on its standard input; `None` where there is no such program.
#[track_caller]
fn run(program: &'static str, arguments: &[&str], input: &[u8]) -> Option<Output> {
    if !machine::has(Need::Program(program)) {
        return None;
    }
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let _ = child.stdin.take().expect("its input").write_all(input);
    Some(child.wait_with_output().expect("its end"))
}

/// What it printed; fails where it failed.
#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl_is_served() {
    let stage = Stage::new();
    let url = stage.url(0);
    for version in [&["--tlsv1.2", "--tls-max", "1.2"][..], &["--tlsv1.3"], &[]] {
        let common = ["-sS", "--noproxy", "*", "-4", "--cacert", stage.ca()];
        // Two transfers over one connection.
        let arguments = [&common[..], version, &[&url, &url]].concat();
        let Some(output) = run("curl", &arguments, b"") else { return };
        assert_eq!(printed(&output), "hellohello");
        let data = noise(3 << 20);
        let arguments = [&common[..], version, &["--data-binary", "@-", &url]].concat();
        let output = run("curl", &arguments, &data).unwrap();
        assert!(output.status.success() && output.stdout == data, "{version:?}");
        let arguments = [&common[..], version, &["-T", "-", &url]].concat();
        let output = run("curl", &arguments, &data).unwrap();
        assert!(output.status.success() && output.stdout == data, "{version:?}");
        let protected = stage.url(1);
        let arguments = [&common[..], version, &[&protected]].concat();
        assert!(!run("curl", &arguments, b"").unwrap().status.success());
        let (certificate, key) = (stage.me.certificate.to_str().unwrap(), stage.me.key.to_str().unwrap());
        let arguments = [&common[..], version, &["--cert", certificate, "--key", key, &protected]].concat();
        assert_eq!(printed(&run("curl", &arguments, b"").unwrap()), "hello");
        let last = stage.backend.requests().pop().unwrap();
        assert_eq!(last.field("X-Client-Cert-Fingerprint"), Some(stage.me.fingerprint().as_str()));
    }
}

#[test]
fn openssl_resumes_its_sessions() {
    let stage = Stage::new();
    let address = stage.address(0);
    let session = stage.proxy.folder().join("session.pem");
    let session = session.to_str().unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let common = [
            "s_client",
            "-connect",
            &address,
            "-servername",
            "localhost",
            "-CAfile",
            stage.ca(),
            version,
            "-verify_return_error",
            "-ign_eof",
        ];
        let Some(output) = run("openssl", &[&common[..], &["-sess_out", session]].concat(), request) else {
            return;
        };
        let text = printed(&output);
        assert!(text.contains("New, TLS") && text.contains("Verify return code: 0"), "{text}");
        assert!(text.contains("hello"), "{text}");
        assert!(fs::metadata(session).is_ok_and(|file| file.len() > 0), "there is a session");
        for _ in 0..4 {
            let output = run("openssl", &[&common[..], &["-sess_in", session]].concat(), request).unwrap();
            let text = printed(&output);
            assert!(text.contains("Reused, TLS") && text.contains("hello"), "{text}");
        }
    }
    let arguments = [
        "s_client",
        "-connect",
        &address,
        "-servername",
        "localhost",
        "-tls1_2",
        "-reconnect",
        "-no_ign_eof",
    ];
    let text = printed(&run("openssl", &arguments, b"Q\n").unwrap());
    assert_eq!(text.matches("Reused, TLSv1.2").count(), 5, "{text}");
}

#[test]
fn a_renegotiation_is_refused_and_does_no_harm() {
    let stage = Stage::new();
    let address = stage.address(0);
    let arguments = ["s_client", "-connect", &address, "-servername", "localhost", "-tls1_2"];
    for _ in 0..2 {
        let Some(output) = run("openssl", &arguments, b"R\n") else { return };
        let said = [output.stdout, output.stderr].concat();
        assert!(contains(&said, "RENEGOTIATING"), "{}", String::from_utf8_lossy(&said));
    }
    let common = ["-sS", "--noproxy", "*", "-4", "--cacert", stage.ca()];
    if let Some(output) = run("curl", &[&common[..], &[&stage.url(0)]].concat(), b"") {
        assert_eq!(printed(&output), "hello");
    }
    assert_eq!(stage.proxy.counter("worker.restarts"), 0);
    stage.proxy.wait_for_counter("client.connections", 0);
}

#[test]
fn openssl_may_end_its_input_and_still_gets_its_answer() {
    let stage = Stage::new();
    let address = stage.address(0);
    let request = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n";
    let arguments = ["s_client", "-connect", &address, "-servername", "localhost", "-quiet", "-ign_eof"];
    let Some(output) = run("openssl", &arguments, request) else { return };
    assert!(contains(&output.stdout, "hello"), "{output:?}");
}

#[test]
fn h2load_gets_an_answer_for_every_request() {
    let stage = Stage::new();
    let url = stage.url(0);
    let arguments = ["--h1", "-n", "2000", "-c", "20", "-t", "1", &url];
    let Some(output) = run("h2load", &arguments, b"") else { return };
    let text = printed(&output);
    assert!(text.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
}

#[test]
fn python_is_served() {
    let stage = Stage::new();
    let script = r#"
import http.client, ssl, sys, urllib.request
address, protected, ca, cert, key = sys.argv[1:]
for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    host, port = address.split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    for size in 0, 1, 100000:
        connection.request("POST", "/", body=b"x" * size)
        answer = connection.getresponse().read()
        assert answer == (b"x" * size or b"hello"), size
    connection.request("POST", "/", body=iter([b"a" * 20000, b"b"]), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().read() == b"a" * 20000 + b"b"
    connection.close()
    assert urllib.request.urlopen("https://" + address + "/", context=context, timeout=10).read() == b"hello"
    context.load_cert_chain(cert, key)
    assert urllib.request.urlopen("https://" + protected + "/", context=context, timeout=10).read() == b"hello"
    # In order to the end: unwrap waits for the word of the proxy.
    import socket
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            data = b""
            while piece := tls.recv(4096):
                data += piece
            assert data.endswith(b"hello")
            tls.unwrap()
print("done")
"#;
    let (address, protected) = (stage.address(0), stage.address(1));
    let (certificate, key) = (stage.me.certificate.to_str().unwrap(), stage.me.key.to_str().unwrap());
    let arguments = ["-c", script, &address, &protected, stage.ca(), certificate, key];
    let Some(output) = run("python3", &arguments, b"") else { return };
    assert_eq!(printed(&output), "done\n");
}

#[test]
fn node_is_served() {
    let stage = Stage::new();
    let script = r#"
const https = require("https"), fs = require("fs");
const [address, protectedAddress, ca, cert, key] = process.argv.slice(1);
const [host, port] = address.split(":");
const ask = (options, body) => new Promise((resolve, reject) => {
  const request = https.request({ host, port, ca: fs.readFileSync(ca), method: "POST", ...options }, (answer) => {
    let data = "";
    const resumed = answer.socket.isSessionReused();
    answer.on("data", (piece) => data += piece);
    answer.on("end", () => resolve([data, request.reusedSocket, resumed]));
  });
  request.on("error", reject);
  request.end(body);
});
const expect = (got, wanted) => { if (got !== wanted) throw new Error(`${got} is not ${wanted}`); };
(async () => {
  for (const version of ["TLSv1.2", "TLSv1.3"]) {
    const agent = new https.Agent({ keepAlive: true, maxSockets: 1, minVersion: version, maxVersion: version });
    expect((await ask({ agent }))[0], "hello");
    const [big, again] = await ask({ agent }, "x".repeat(300000));
    expect(big.length, 300000);
    expect(again, true);
    agent.destroy();
    const closing = new https.Agent({ maxCachedSessions: 10, minVersion: version, maxVersion: version });
    await ask({ agent: closing });
    expect((await ask({ agent: closing }))[2], true);
    const [, protectedPort] = protectedAddress.split(":");
    const known = { cert: fs.readFileSync(cert), key: fs.readFileSync(key), port: protectedPort };
    expect((await ask({ ...known, minVersion: version, maxVersion: version }))[0], "hello");
  }
  console.log("done");
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
"#;
    let (address, protected) = (stage.address(0), stage.address(1));
    let (certificate, key) = (stage.me.certificate.to_str().unwrap(), stage.me.key.to_str().unwrap());
    let arguments = ["-e", script, &address, &protected, stage.ca(), certificate, key];
    let Some(output) = run("node", &arguments, b"") else { return };
    assert_eq!(printed(&output), "done\n");
}

//! Configuration files: text that an operator, or a program that has the wrong template, writes.

use kakehi_ctl::config::{self, write};

pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text, "/etc/kakehi/kakehi.toml") {
        Ok(loaded) => {
            // What is written of it is read as the same; certificates are named by files that nobody has read.
            let written = write::write(&loaded.state);
            let again = match config::parse(&written, "/etc/kakehi/kakehi.toml") {
                Ok(again) => again.state,
                Err(errors) => panic!("what is written is refused: {errors}\n{written}"),
            };
            assert_eq!(again.listeners, loaded.state.listeners);
            assert_eq!(again.clusters, loaded.state.clusters);
        }
        Err(errors) => {
            assert!(errors.count() > 0 && errors.iter().count() <= 50);
            // All that is shown can be printed.
            let shown = errors.to_string();
            assert!(shown.chars().all(|it| it == '\n' || !it.is_control()), "{shown:?}");
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "[[listeners]]\naddress = \"127.0.0.1:80\"\nprotocol = \"http\"\nfront_timeout = \"5m\"\n\
         [clusters.a]\nprotocol = \"http\"\nfrontends = [{ address = \"127.0.0.1:80\", hostname = \"a\", method = \"GET\" }]\n\
         [[clusters.b.backends]]\naddress = \"127.0.0.1:1\"\n[clusters.b]\nprotocol = \"tcp\"\n\
         [[clusters.a.backends]]\naddress = \"unix:/a\"\nweight = 3\n",
        "[clusters]\na = { protocol = \"http\", frontends = [{ address = \"[::]:81\", hostname = \"*\" }] }\n\
         b.protocol = \"http\"\nb.backends = [\n{ address = \"127.0.0.1:1\" }]\n",
        "worker_cuont = 2\nfront_timeout = 10 s\n[clusters.a\n\"\\u001b[31m\" = 1\n[clusters.\"\u{202e}\"]\n\u{9b}31m = 1\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

//! What must hold for any bytes that a peer sends.
//!
//! For: `scripts/fuzz`, in which libFuzzer looks for bytes for which it does not hold, guided by the coverage of the
//! engine; and `cargo test`, which checks the seeds and a few thousand spoilt ones. Each target is a function of bytes
//! that panics when a property is violated; it never panics otherwise. Relies on the public parsers of the engine and
//! of ctl. To keep a finding, add its bytes to the seeds of its target.
//!
//! | target | property |
//! |---|---|
//! | `request_head` | the same in pieces; what is forwarded is one valid head with the same meaning |
//! | `response_head` | the same in pieces; what is forwarded is one valid head that ends where the plan says |
//! | `chunked` | the same in any pieces; what is sent on is read alike, with the same data |
//! | `proxy_header` | only a whole header is taken; what is written of it is read alike |
//! | `client_hello` | the name asked for is the same in any pieces |
//! | `control` | messages are the same in any pieces, and when written anew |
//! | `config` | a file is refused in words that can be printed, or read again from what is written of it |
//! | `handover` | a message is taken with its number of sockets only, and is the same when written anew |
#![allow(clippy::panic, reason = "a violated property ends the run")]

mod chunked;
mod client_hello;
mod config;
mod control;
mod handover;
mod pieces;
mod proxy_header;
mod request_head;
mod response_head;

/// Something that takes bytes of a peer.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Panics if a property does not hold for these bytes.
    pub check: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "request_head", check: request_head::check, seeds: request_head::seeds },
    Target { name: "response_head", check: response_head::check, seeds: response_head::seeds },
    Target { name: "chunked", check: chunked::check, seeds: chunked::seeds },
    Target { name: "proxy_header", check: proxy_header::check, seeds: proxy_header::seeds },
    Target { name: "client_hello", check: client_hello::check, seeds: client_hello::seeds },
    Target { name: "control", check: control::check, seeds: control::seeds },
    Target { name: "config", check: config::check, seeds: config::seeds },
    Target { name: "handover", check: handover::check, seeds: handover::seeds },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Spoilt inputs of each seed: enough to see that a target works, little enough for every run of the tests.
    const SPOILT: usize = 200;

    /// Pseudo-random numbers (xorshift), the same at each run.
    struct Numbers(u64);

    impl Numbers {
        /// A number below `bound`, which is not 0.
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    #[test]
    fn the_properties_hold_for_the_seeds_and_for_spoilt_ones() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for target in TARGETS {
            (target.check)(&[]);
            for seed in (target.seeds)() {
                (target.check)(&seed);
                for _ in 0..SPOILT {
                    let mut bytes = seed.clone();
                    for _ in 0..=numbers.below(3) {
                        let at = numbers.below(bytes.len());
                        match numbers.below(3) {
                            0 => bytes[at] = numbers.below(256) as u8,
                            1 => bytes.insert(at, b"\r\n :;,0"[numbers.below(7)]),
                            _ if bytes.len() > 1 => drop(bytes.remove(at)),
                            _ => {}
                        }
                    }
                    (target.check)(&bytes);
                }
            }
        }
    }
}

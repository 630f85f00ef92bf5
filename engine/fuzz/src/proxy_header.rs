//! Headers of the PROXY protocol, versions 1 and 2.

use std::net::SocketAddr;

use kakehi_engine::transport::proxy_header::{AddressPair, parse, write_v2};

pub(crate) fn check(data: &[u8]) {
    let whole = parse(data);
    for length in (0..data.len()).take(5_000) {
        match (parse(&data[..length]), &whole) {
            // Not complete yet: then it is longer than this, if it is one.
            (Ok(None), Ok(Some(header))) => assert!(header.length > length),
            (Ok(None), _) => {}
            // Once decided, what follows changes nothing.
            (decided, _) => {
                assert_eq!(decided, whole, "after {length} bytes");
                break;
            }
        }
    }
    let Ok(Some(header)) = whole else { return };
    assert!(header.length <= data.len());
    let mut out = Vec::new();
    write_v2(header.ends.as_ref(), &mut out);
    let again = parse(&out).unwrap_or_else(|error| panic!("what is written is refused: {error}"));
    let Some(again) = again else { panic!("what is written is not complete: {out:?}") };
    assert_eq!(again.length, out.len());
    assert_eq!(again.ends.map(canonical), header.ends.map(canonical));
}

/// IPv4 addresses that are written as IPv6 are the same.
fn canonical(ends: AddressPair) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (plain(ends.source), plain(ends.destination))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET /",
        "PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 1 65535\r\n",
        "PROXY UNKNOWN and whatever\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 056 443\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let address = |text: &str| text.parse::<SocketAddr>().ok();
    let pairs = [
        ("192.0.2.1:5", "198.51.100.2:80"),
        ("[2001:db8::1]:5", "[2001:db8::2]:443"),
        ("192.0.2.1:5", "[2001:db8::2]:443"),
    ];
    for (source, destination) in pairs {
        let (Some(source), Some(destination)) = (address(source), address(destination)) else { continue };
        let mut bytes = Vec::new();
        write_v2(Some(&AddressPair { source, destination }), &mut bytes);
        seeds.push([&bytes, &b"GET /"[..]].concat());
    }
    let mut local = Vec::new();
    write_v2(None, &mut local);
    seeds.push(local);
    // With extensions behind the addresses.
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x12";
    seeds.push([&fixed[..], &[1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 1, 187, 4, 0, 3, 0, 0, 0]].concat());
    seeds
}

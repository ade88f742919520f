//! Every host name has one reading, and what is not canonical is refused before anything wakes (T35).

use ids::{Port, SpriteName, UrlSuffix};
use proptest::prelude::*;
use route::{Destination, HostError, Why, Zone};

fn zone() -> Zone {
    let ssh = Port::try_from(22).expect("a port");
    Zone::new("sprites.localhost").expect("a domain").reserving([ssh])
}

/// `(key, name, suffix, port)` of a sprite's host name.
fn sprite(authority: &str) -> (String, String, String, Option<u16>) {
    match zone().parse(authority) {
        Ok(Destination::Sprite(s)) => {
            (s.key().into(), s.name().into(), s.suffix().into(), s.port().map(Port::get))
        }
        other => panic!("{authority:?}: {other:?}"),
    }
}

fn why(authority: &str) -> Why {
    match zone().parse(authority) {
        Err(HostError::Malformed { why }) => why,
        other => panic!("{authority:?}: {other:?}"),
    }
}

#[test]
fn a_sprite_is_found_by_name_and_suffix() {
    let expected = |port| ("web-ab12c".into(), "web".into(), "ab12c".into(), port);
    for authority in [
        "web-ab12c.sprites.localhost",
        "web-ab12c.sprites.localhost.",
        "web-ab12c.sprites.localhost:8080",
        "web-ab12c.sprites.localhost.:443",
        "WEB-Ab12C.Sprites.LOCALHOST",
    ] {
        assert_eq!(sprite(authority), expected(None), "{authority}");
    }
    assert_eq!(sprite("3000--web-ab12c.sprites.localhost"), expected(Some(3000)));
    assert_eq!(sprite("65535--WEB-ab12c.sprites.localhost.:1"), expected(Some(65535)));
    let many = ("a-b-c-ab12c".into(), "a-b-c".into(), "ab12c".into(), None);
    assert_eq!(sprite("a-b-c-ab12c.sprites.localhost"), many);
}

#[test]
fn t14_sprites_of_one_name_in_two_organizations_are_told_apart() {
    let keys = ["web-ab12c", "web-ab12d"].map(|label| sprite(&format!("{label}.sprites.localhost")).0);
    assert_ne!(keys[0], keys[1]);
    // Nor can a name be made to look like another organization's.
    assert_eq!(sprite("web-ab12c-ab12d.sprites.localhost").2, "ab12d");
}

#[test]
fn the_api_is_at_its_name_at_localhost_and_at_every_address() {
    for authority in [
        "api.sprites.localhost",
        "API.sprites.localhost.:8443",
        "localhost",
        "localhost:8080",
        "LocalHost.:1",
        "127.0.0.1",
        "127.0.0.1:8080",
        "10.1.2.3",
        "[::1]",
        "[::1]:8080",
        "[2001:db8::1]:443",
    ] {
        assert_eq!(zone().parse(authority), Ok(Destination::Api), "{authority}");
    }
}

#[test]
fn names_outside_the_zone_are_not_ours() {
    for authority in [
        "example.com",
        "sprites.localhost",
        "localhost.evil.example",
        "evil-sprites.localhost",
        "web-ab12csprites.localhost",
        "web-ab12c.sprites.localhost.evil.example",
        "sprites.localhost.",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f.1",
    ] {
        assert_eq!(zone().parse(authority), Err(HostError::NotOurs), "{authority}");
    }
}

#[test]
fn t35_what_is_not_canonical_is_refused_before_any_wake() {
    let long_name = "x".repeat(58);
    for (authority, expected) in [
        ("", Why::Empty),
        (":80", Why::Empty),
        (".", Why::EmptyLabel),
        ("..", Why::EmptyLabel),
        ("web-ab12c.sprites.localhost..", Why::EmptyLabel),
        ("web-ab12c..sprites.localhost", Why::EmptyLabel),
        (".sprites.localhost", Why::EmptyLabel),
        ("a.web-ab12c.sprites.localhost", Why::SecondLabel),
        ("api.api.sprites.localhost", Why::SecondLabel),
        ("0--web-ab12c.sprites.localhost", Why::LabelPort),
        ("65536--web-ab12c.sprites.localhost", Why::LabelPort),
        ("03000--web-ab12c.sprites.localhost", Why::LabelPort),
        ("-1--web-ab12c.sprites.localhost", Why::LabelPort),
        ("http--web-ab12c.sprites.localhost", Why::LabelPort),
        ("--web-ab12c.sprites.localhost", Why::LabelPort),
        ("3000--4000--web-ab12c.sprites.localhost", Why::Label),
        ("3000---web-ab12c.sprites.localhost", Why::Label),
        ("22--web-ab12c.sprites.localhost", Why::ReservedPort),
        ("xn--bcher-kva.sprites.localhost", Why::Punycode),
        ("XN--web-ab12c.sprites.localhost", Why::Punycode),
        ("3000--xn--web-ab12c.sprites.localhost", Why::Label),
        ("web.sprites.localhost", Why::Label),
        ("web-.sprites.localhost", Why::Label),
        ("-ab12c.sprites.localhost", Why::Label),
        ("web-ab12cd.sprites.localhost", Why::Label),
        ("web-ab12c:0", Why::Port),
        ("web-ab12c.sprites.localhost:", Why::Port),
        ("web-ab12c.sprites.localhost:65536", Why::Port),
        ("web-ab12c.sprites.localhost:080", Why::Port),
        ("web-ab12c.sprites.localhost:80:80", Why::Port),
        ("web-ab12c.sprites.localhost:+80", Why::Port),
        ("user@web-ab12c.sprites.localhost", Why::Character),
        ("user:pass@web-ab12c.sprites.localhost", Why::Port),
        (" web-ab12c.sprites.localhost", Why::Character),
        ("web-ab12c.sprites.localhost ", Why::Character),
        ("web-ab12c.sprites.localhost\t", Why::Character),
        ("web-ab12c.sprites.localhost\0", Why::Character),
        ("web-ab12c.sprites.localhost,example.com", Why::Character),
        ("web-ab12c.sprites.localhost/", Why::Character),
        ("web%2dab12c.sprites.localhost", Why::Character),
        ("web_x-ab12c.sprites.localhost", Why::Character),
        ("wéb-ab12c.sprites.localhost", Why::Character),
        // The Kelvin sign lowercases to `k` outside ASCII.
        ("\u{212a}-ab12c.sprites.localhost", Why::Character),
        ("[::1", Why::Ipv6),
        ("[]", Why::Ipv6),
        ("[127.0.0.1]", Why::Ipv6),
        ("[fe80::1%25eth0]", Why::Ipv6),
        ("[::1]x", Why::Character),
        ("[::1]:", Why::Port),
        ("::1", Why::Port),
        (&format!("{long_name}-ab12c.sprites.localhost"), Why::LabelTooLong),
        (&format!("3000--{}-ab12c.sprites.localhost", "x".repeat(52)), Why::LabelTooLong),
        (&"a.".repeat(130), Why::TooLong),
        (&"a".repeat(1 << 20), Why::TooLong),
    ] {
        assert_eq!(why(authority), expected, "{authority:?}");
    }
}

#[test]
fn every_refusal_is_a_sentence_for_people() {
    let error = zone().parse("0--web-ab12c.sprites.localhost").unwrap_err().to_string();
    assert!(error.contains("a port from 1 to 65535"), "{error}");
}

#[test]
fn a_zone_is_a_domain() {
    let long = format!("{}.example", "x".repeat(63));
    for good in ["localhost", "sprites.example", "a.b.c.d", "x-1.example", &long] {
        assert!(Zone::new(good).is_ok(), "{good}");
    }
    let too_long = vec!["abcdefghi"; 19].join(".");
    for bad in ["", ".", "a.", ".a", "a..b", "A.b", "a b", "-a", "a-", "é", &"x".repeat(64), &too_long] {
        assert!(Zone::new(bad).is_err(), "{bad}");
    }
}

prop_compose! {
    fn name()(name in "[a-z0-9]([a-z0-9]|-[a-z0-9]){0,20}") -> SpriteName { name.parse().expect("a name") }
}
prop_compose! {
    fn suffix()(suffix in "[a-z0-9]{5}") -> UrlSuffix { suffix.parse().expect("a suffix") }
}
fn port() -> impl Strategy<Value = Option<Port>> {
    prop::option::of(
        (1..=u16::MAX)
            .prop_filter("not reserved", |port| *port != 22)
            .prop_map(|p| p.try_into().expect("not zero")),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_host_that_was_made_is_read_as_it_was_meant(
        name in name(), suffix in suffix(), port in port(), upper in any::<bool>(), dot in any::<bool>(),
        own_port in prop::option::of(1..=u16::MAX),
    ) {
        let zone = zone();
        let mut authority = zone.host(&name, &suffix, port);
        if upper { authority.make_ascii_uppercase(); }
        if dot { authority.push('.'); }
        if let Some(port) = own_port { authority.push_str(&format!(":{port}")); }
        let Ok(Destination::Sprite(host)) = zone.parse(&authority) else { panic!("{authority}") };
        prop_assert_eq!(host.key(), Zone::key(&name, &suffix));
        prop_assert_eq!((host.name(), host.suffix(), host.port()), (name.as_str(), suffix.as_str(), port));
    }

    #[test]
    fn whatever_is_accepted_has_one_spelling(authority in "([0-9]{1,5}--|xn--|)[a-zA-Z0-9._%@-]{0,12}-[a-z0-9A-Z]{1,6}([.]sprites)?[.]localhost[.]?(:[0-9]{0,6})?") {
        let zone = zone();
        if let Ok(Destination::Sprite(host)) = zone.parse(&authority) {
            let (name, suffix) = (host.name().parse().unwrap(), host.suffix().parse().unwrap());
            let canonical = zone.host(&name, &suffix, host.port());
            let again = zone.parse(&canonical).unwrap();
            prop_assert_eq!(&again, &Destination::Sprite(host.into_owned()));
            let host_only = authority.split(':').next().unwrap().trim_end_matches('.').to_ascii_lowercase();
            prop_assert_eq!(host_only, canonical);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = zone().parse(&text);
        let _ = zone().parse(&format!("{text}.sprites.localhost"));
        let _ = zone().parse(&format!("[{text}]"));
    }

    #[test]
    fn no_text_of_the_right_letters_makes_it_panic(text in "[a-z0-9.:\\[\\]-]{0,80}", tail in "(.sprites.localhost)?[.]?") {
        let _ = zone().parse(&format!("{text}{tail}"));
    }
}

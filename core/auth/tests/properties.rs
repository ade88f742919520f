//! What must hold for every header there can be.

use auth::{Access, Credential, Decision, TokenDigest, decide};
use ids::OrgSlug;
use proptest::prelude::*;

prop_compose! {
    fn token()(slug in "[a-z0-9]{1,20}", suffix in "[a-z0-9]{5}", id in "[a-zA-Z0-9]{1,32}", value in "[a-zA-Z0-9]{43}") -> String {
        format!("{slug}/{suffix}/{id}/spr_{value}")
    }
}

fn read(line: &[u8]) -> Credential {
    Credential::of([line])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let with_scheme = [b"Bearer ", &bytes[..]].concat();
        for line in [&bytes[..], &with_scheme] {
            prop_assert_eq!(Credential::is_ours(line), matches!(read(line), Credential::Ours(_)));
        }
    }

    #[test]
    fn a_token_opens_what_it_is_for_and_nothing_else(token in token(), other in token()) {
        let Credential::Ours(shown) = read(format!("Bearer {token}").as_bytes()) else { panic!("{token}") };
        let owner = shown.slug().clone();
        let verified = shown.verify(&TokenDigest::of(&token), &owner);
        prop_assert!(verified.is_some());
        prop_assert!(matches!(decide(Access::Members, &owner, verified.as_ref()), Decision::Allowed(_)));
        let stranger: OrgSlug = "somebody-else".parse().expect("a name");
        prop_assert_eq!(decide(Access::Members, &stranger, verified.as_ref()), Decision::Denied);
        // On record for another text, under the same id perhaps.
        prop_assume!(token != other);
        prop_assert!(shown.verify(&TokenDigest::of(&other), &owner).is_none());
    }

    #[test]
    fn one_letter_more_less_or_other_is_another_token_or_none(
        token in token(), place in any::<prop::sample::Index>(), letter in any::<char>(), how in 0..3_u8,
    ) {
        let place = place.index(token.len());
        let (before, after) = token.split_at(place);
        let changed = match how {
            0 => format!("{before}{letter}{after}"),
            1 => format!("{before}{}", &after[1..]),
            _ => format!("{before}{letter}{}", &after[1..]),
        };
        prop_assume!(changed != token);
        // White space around the header's value means nothing.
        prop_assume!(changed.trim_matches([' ', '\t']) != token);
        if let Credential::Ours(shown) = read(format!("Bearer {changed}").as_bytes()) {
            let owner = shown.slug().clone();
            prop_assert!(shown.verify(&TokenDigest::of(&token), &owner).is_none());
        }
    }
}

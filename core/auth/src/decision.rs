//! Who may do what.

use ids::OrgSlug;

use crate::Verified;

/// Who may use a sprite's URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Anyone.
    Public,
    /// Members of the organization that owns it.
    Members,
}

/// The proof that a request may go on. Only [`decide`] and [`decide_api`] make it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    member: Option<OrgSlug>,
}

impl Allowed {
    /// The organization as whose member the request goes on; `None` if it is anonymous.
    #[must_use]
    pub const fn member(&self) -> Option<&OrgSlug> {
        self.member.as_ref()
    }
}

/// Whether a request may go on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Decision {
    /// It may.
    Allowed(Allowed),
    /// It may not. Nothing is to be woken, and the answer must not tell what exists.
    Denied,
}

/// Decides about a request to a sprite's URL.
///
/// A member of another organization is as anonymous as anyone on a public URL.
pub fn decide(access: Access, owner: &OrgSlug, verified: Option<&Verified>) -> Decision {
    let member = verified.map(Verified::organization).filter(|organization| *organization == owner).cloned();
    match (access, member) {
        (Access::Public | Access::Members, Some(owner)) => Decision::Allowed(Allowed { member: Some(owner) }),
        (Access::Public, None) => Decision::Allowed(Allowed { member: None }),
        (Access::Members, None) => Decision::Denied,
    }
}

/// Decides about a call of the API for things that `owner` owns. Nothing of it is public.
pub fn decide_api(owner: &OrgSlug, verified: Option<&Verified>) -> Decision {
    decide(Access::Members, owner, verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credential, TokenDigest};

    fn bearer(organization: &str) -> Verified {
        let text = format!("{organization}/ab12c/id/spr_{}", "x".repeat(43));
        let Credential::Ours(shown) = Credential::of([format!("Bearer {text}").as_bytes()]) else {
            panic!("{text} is a token");
        };
        shown.verify(&TokenDigest::of(&text), &organization.parse().unwrap()).unwrap()
    }

    #[test]
    fn only_members_of_the_owner_use_what_is_not_public() {
        let owner: OrgSlug = "acme".parse().unwrap();
        let (member, stranger) = (bearer("acme"), bearer("other"));
        let as_member = Decision::Allowed(Allowed { member: Some(owner.clone()) });
        let anonymous = Decision::Allowed(Allowed { member: None });

        for (access, verified, expected) in [
            (Access::Public, None, &anonymous),
            (Access::Public, Some(&stranger), &anonymous),
            (Access::Public, Some(&member), &as_member),
            (Access::Members, None, &Decision::Denied),
            (Access::Members, Some(&stranger), &Decision::Denied),
            (Access::Members, Some(&member), &as_member),
        ] {
            assert_eq!(&decide(access, &owner, verified), expected, "{access:?} {verified:?}");
        }
        assert_eq!(decide_api(&owner, None), Decision::Denied);
        assert_eq!(decide_api(&owner, Some(&stranger)), Decision::Denied);
        assert_eq!(decide_api(&owner, Some(&member)), as_member);
    }
}

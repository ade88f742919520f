//! Making tokens and organizations: the only place in the agent that handles a token's text.

use agent_api::{MintToken, MintedToken, Organization, TokenRecord};
use ids::{TokenId, UrlSuffix};
use jiff::Timestamp;
use rand::{Rng, TryRngCore, distr::Alphanumeric, rngs::OsRng};

use crate::{
    directory::Directory,
    store::{Store, StoreError},
};

/// 43 characters of 62 kinds are 256 bits.
const VALUE_LENGTH: usize = 43;
const ID_LENGTH: usize = 12;
const SUFFIX_LENGTH: usize = 5;
/// 36^5 suffixes exist; with a million organizations one try in sixty collides.
const SUFFIX_TRIES: usize = 64;

fn random_text(length: usize) -> String {
    OsRng.unwrap_err().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

/// The organization of that name, made if there is none.
pub(crate) async fn organization(
    store: &Store,
    directory: &Directory,
    slug: &ids::OrgSlug,
) -> Result<Organization, StoreError> {
    if let Some(organization) = directory.organization(slug) {
        return Ok(organization);
    }
    for _ in 0..SUFFIX_TRIES {
        let Ok(url_suffix) = random_text(SUFFIX_LENGTH).to_ascii_lowercase().parse::<UrlSuffix>() else {
            continue;
        };
        if directory.has_suffix(&url_suffix) {
            continue;
        }
        let organization = Organization { slug: slug.clone(), url_suffix };
        return match store.add_organization(organization.clone()).await {
            Ok(()) => {
                directory.put_organization(organization.clone());
                Ok(organization)
            }
            // Somebody made it at the same moment, and may not have published it yet.
            Err(StoreError::NameTaken) if directory.organization(slug).is_some() => {
                directory.organization(slug).ok_or(StoreError::NameTaken)
            }
            Err(error) => Err(error),
        };
    }
    Err(StoreError::NameTaken)
}

/// Mints a token. Its text exists only in the answer; the store gets a hash.
pub(crate) async fn mint(
    store: &Store,
    directory: &Directory,
    ask: MintToken,
) -> Result<MintedToken, StoreError> {
    let organization = organization(store, directory, &ask.organization).await?;
    let id: TokenId = random_text(ID_LENGTH).parse().map_err(|_| StoreError::Corrupt { what: "token id" })?;
    let value = random_text(VALUE_LENGTH);
    let token = format!("{}/{}/{id}/spr_{value}", organization.slug, organization.url_suffix);
    let record = TokenRecord {
        id: id.clone(),
        organization: organization.slug.clone(),
        sha256: auth::TokenDigest::of(&token).to_string(),
        description: ask.description,
        created_at: Timestamp::now(),
    };
    store.add_token(record.clone()).await?;
    directory.put_token(record);
    Ok(MintedToken { id, token, organization })
}

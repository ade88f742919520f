//! Organizations and their tokens.

use std::sync::Arc;

use agent_api::{MintToken, MintedToken, Organization, TokenRecord};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use ids::TokenId;

use super::answer::{Body, Failure};
use crate::{agent::Agent, tokens};

pub(crate) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<Organization>> {
    Json(agent.directory.organizations())
}

pub(crate) async fn list_tokens(State(agent): State<Arc<Agent>>) -> Json<Vec<TokenRecord>> {
    Json(agent.directory.tokens())
}

pub(crate) async fn mint(
    State(agent): State<Arc<Agent>>,
    Body(ask): Body<MintToken>,
) -> Result<(StatusCode, Json<MintedToken>), Failure> {
    let minted = tokens::mint(&agent.store, &agent.directory, ask).await?;
    Ok((StatusCode::CREATED, Json(minted)))
}

/// Gone from the store first, then from every gateway.
pub(crate) async fn revoke(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<TokenId>,
) -> Result<StatusCode, Failure> {
    agent.store.remove_token(id.clone()).await?;
    match agent.directory.remove_token(&id) {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(Failure::not_found("token")),
    }
}

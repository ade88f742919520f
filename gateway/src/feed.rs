//! Keeps the route table fed from the agent's watch stream, for as long as the program runs.

use std::{sync::Arc, time::Duration};

use agent_api::{ApiError, client::AgentClient};
use tracing::{info, warn};

use crate::{backoff::Backoff, routes::RouteTable};

/// The first pause after a broken stream: an agent that restarts is back within this.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: what a restarted agent costs in freshness.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Runs until it is dropped.
pub(crate) async fn run(agent: AgentClient, routes: Arc<RouteTable>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let ended = follow(&agent, &routes, &mut backoff).await;
        let why = match ended {
            Ok(()) => "the agent closed it".to_owned(),
            Err(error) => error.to_string(),
        };
        if backoff.is_first() {
            warn!(why, "The watch stream of the agent has ended; what is known stays");
        }
        backoff.pause().await;
    }
}

async fn follow(agent: &AgentClient, routes: &RouteTable, backoff: &mut Backoff) -> Result<(), ApiError> {
    let mut stream = agent.watch().await?;
    routes.begin_snapshot();
    let mut announced = false;
    while let Some(line) = stream.next().await? {
        let synced = matches!(line.event, agent_api::watch::WatchEvent::Synced);
        routes.apply(line.revision, line.event);
        if synced && !announced {
            announced = true;
            backoff.reset();
            info!(revision = line.revision, "The route table is in step with the agent");
        }
    }
    Ok(())
}

//! The leases with everything real but the agent, whose part the test plays.

use std::{os::fd::AsRawFd, time::Duration};

use agent_api::{
    PublicState,
    lease::{Endpoint, HolderMessage, RefusalCode},
};
use auth::{Access, Allowed, Decision, decide};
use ids::{Attempt, Epoch};
use tokio::time::timeout;

use super::*;
use crate::ledger::Accepted;

const SOON: Duration = Duration::from_secs(5);

struct World {
    leases: Arc<Leases>,
    ledger: Arc<Ledger>,
    outbox: Outbox,
    _timers: tokio::task::JoinHandle<()>,
}

impl World {
    fn new(config: &str) -> Self {
        let settings = crate::config::parse(config).expect("a configuration");
        let clock = Clock::start();
        let ledger = Ledger::new(clock);
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let holder = "test".parse().expect("a holder");
        let (leases, outbox) = Leases::new(&settings, clock, holder, ledger.clone(), metrics);
        leases.channel_up(Duration::from_secs(10));
        let timers = tokio::spawn(leases.clone().run_timers());
        Self { leases, ledger, outbox, _timers: timers }
    }

    async fn sent(&mut self) -> HolderMessage {
        timeout(SOON, self.outbox.0.recv()).await.expect("a message in time").expect("an open outbox")
    }

    async fn acquire(&mut self) -> Attempt {
        match self.sent().await {
            HolderMessage::Acquire { attempt, .. } => attempt,
            other => panic!("not an acquire: {other:?}"),
        }
    }

    fn grant(&self, attempt: Attempt, epoch: u64) {
        let endpoint = Endpoint::Handoff { path: "/nowhere".into() };
        self.leases.granted(sprite(), attempt, Grant { epoch: Epoch(epoch), endpoint }, PublicState::Warm);
    }

    fn request(&self) -> tokio::task::JoinHandle<Result<Lease, EdgeError>> {
        let slot = self.leases.slot(sprite());
        tokio::spawn(async move { slot.acquire(&allowed(), "request").await })
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(timeout(SOON, waiting).await.is_ok(), "never: {what}");
    }
}

fn sprite() -> SpriteId {
    SpriteId::from_u128(1)
}

fn allowed() -> Allowed {
    match decide(Access::Public, &"acme".parse().expect("a slug"), None) {
        Decision::Allowed(allowed) => allowed,
        Decision::Denied => panic!("public is for anyone"),
    }
}

fn conn(ledger: &Arc<Ledger>) -> (Arc<crate::ledger::Conn>, std::net::UdpSocket) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    let accepted =
        Accepted { peer: address, local: address, fd: socket.as_raw_fd(), tls: false, tls_name: None };
    (ledger.enter(accepted), socket)
}

#[tokio::test]
async fn t11_a_leader_that_leaves_does_not_stop_the_wake_that_others_wait_for() {
    let mut world = World::new("");
    let leader = world.request();
    let attempt = world.acquire().await;
    let followers: Vec<_> = (0..10).map(|_| world.request()).collect();
    world.until("all wait", || world.leases.held() == 11).await;
    leader.abort();
    world.until("the leader has left", || world.leases.held() == 10).await;
    world.grant(attempt, 1);
    for follower in followers {
        assert!(timeout(SOON, follower).await.expect("in time").expect("no panic").is_ok());
    }
    assert_eq!(world.leases.held(), 0);
    assert!(matches!(world.sent().await, HolderMessage::Release { .. }), "and the linger gives it back");
}

#[tokio::test]
async fn t17_a_wake_that_everyone_has_left_is_given_back_and_the_slot_forgotten() {
    let mut world = World::new("[timing]\nlinger_ms = 5");
    let request = world.request();
    let attempt = world.acquire().await;
    request.abort();
    world.until("it has left", || world.leases.held() == 0).await;
    world.grant(attempt, 1);
    let released = world.sent().await;
    assert!(
        matches!(released, HolderMessage::Release { attempt: which, .. } if which == attempt),
        "{released:?}"
    );
    world.until("the slot is forgotten", || world.leases.slots.is_empty()).await;
    // Whoever comes next begins with a newer attempt, or the agent would take it for an old message.
    let _next = world.request();
    assert!(world.acquire().await > attempt);
}

#[tokio::test]
async fn t12_a_refusal_reaches_everyone_once_and_is_not_remembered() {
    let mut world = World::new("");
    let requests: Vec<_> = (0..3).map(|_| world.request()).collect();
    let attempt = world.acquire().await;
    world.until("all wait", || world.leases.held() == 3).await;
    let refusal =
        Refusal { code: RefusalCode::StartFailed, message: "no disk".into(), retry_after_ms: Some(1000) };
    world.leases.refused(sprite(), attempt, refusal);
    for request in requests {
        let error = request.await.expect("no panic").expect_err("refused");
        assert!(matches!(error, EdgeError::LeaseRefused(_)), "{error:?}");
    }
    let _next = world.request();
    assert!(world.acquire().await > attempt, "asked anew");
}

#[tokio::test]
async fn t13_a_request_on_a_connection_that_holds_its_sprite_takes_no_lock_of_the_sprite() {
    let mut world = World::new("");
    let (conn, _socket) = conn(&world.ledger);
    let request = world.request();
    let attempt = world.acquire().await;
    world.grant(attempt, 1);
    let lease = request.await.expect("no panic").expect("granted");
    let slot = lease.slot().clone();
    assert!(conn.attach(&slot, true));
    drop(lease);
    let everything_else_waits = slot.lock_for_test();
    let (slot_again, flight) = conn.attached(sprite(), true).expect("attached");
    assert!(slot_again.pass(&allowed(), flight).is_some());
    drop(everything_else_waits);
}

#[tokio::test]
async fn t15_one_request_too_many_is_refused_at_once() {
    let mut world = World::new("[limits]\nheld_per_sprite = 2");
    let _held: Vec<_> = (0..2).map(|_| world.request()).collect();
    world.acquire().await;
    world.until("both wait", || world.leases.held() == 2).await;
    let refused = timeout(SOON, world.request()).await.expect("at once").expect("no panic");
    assert!(matches!(refused, Err(EdgeError::LineFull(hold::Full::Sprite))), "{refused:?}");
}

#[tokio::test]
async fn t16_requests_are_released_at_a_pace_that_late_answers_do_not_stop() {
    let mut world = World::new("[limits]\nrelease_at_once = 2");
    let requests: Vec<_> = (0..6).map(|_| world.request()).collect();
    let attempt = world.acquire().await;
    world.until("all wait", || world.leases.held() == 6).await;
    world.grant(attempt, 1);
    assert_eq!(world.leases.held(), 4, "two at once");
    let began = std::time::Instant::now();
    let mut leases = Vec::new();
    for request in requests {
        // None of them is ever answered.
        leases.push(timeout(SOON, request).await.expect("in time").expect("no panic").expect("granted"));
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "three pairs, with a pause before the last two");
}

#[tokio::test]
async fn t3_a_revoked_lease_ends_with_its_last_request_and_idle_connections_let_go() {
    let mut world = World::new("[timing]\nrevoke_grace_ms = 60000");
    let (idle, _socket) = conn(&world.ledger);
    let request = world.request();
    let attempt = world.acquire().await;
    world.grant(attempt, 1);
    let lease = request.await.expect("no panic").expect("granted");
    assert!(idle.attach(lease.slot(), true));
    world.leases.revoked(sprite(), Epoch(1));
    assert!(idle.attached(sprite(), true).is_none(), "the idle connection has let go");
    assert!(lease.upstream().has_ended() && world.outbox.0.try_recv().is_err(), "the request goes on");
    drop(lease);
    assert!(matches!(world.sent().await, HolderMessage::Release { .. }));
}

#[tokio::test]
async fn a_held_request_gives_up_after_its_budget() {
    let mut world = World::new("[timing]\nhold_budget_ms = 20");
    let request = world.request();
    world.acquire().await;
    let error = timeout(SOON, request).await.expect("in time").expect("no panic").expect_err("too late");
    assert!(matches!(error, EdgeError::HoldExpired(_)), "{error:?}");
    assert_eq!(world.leases.held(), 0);
}

#[tokio::test]
async fn a_closed_connection_lets_go_of_what_it_held() {
    let mut world = World::new("[timing]\nlinger_ms = 1");
    let (conn, _socket) = conn(&world.ledger);
    let request = world.request();
    let attempt = world.acquire().await;
    world.grant(attempt, 1);
    let lease = request.await.expect("no panic").expect("granted");
    assert!(conn.attach(lease.slot(), true));
    drop(lease);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(world.outbox.0.try_recv().is_err(), "an open connection keeps its sprite awake");
    drop(conn);
    assert!(matches!(world.sent().await, HolderMessage::Release { .. }));
    assert_eq!(world.ledger.len(), 0);
}

#[tokio::test]
async fn a_panic_lets_go_of_everything() {
    let mut world = World::new("[timing]\nlinger_ms = 1");
    let (conn, _socket) = conn(&world.ledger);
    let request = world.request();
    let attempt = world.acquire().await;
    world.grant(attempt, 1);
    let lease = request.await.expect("no panic").expect("granted");
    assert!(conn.attach(lease.slot(), true));
    assert_eq!((world.ledger.len(), world.leases.count().0), (1, 1));
    let serving = tokio::spawn(async move {
        let _held = (conn, lease);
        tokio::task::yield_now().await;
        panic!("on purpose");
    });
    assert!(serving.await.expect_err("it panics").is_panic());
    assert!(matches!(world.sent().await, HolderMessage::Release { .. }));
    assert_eq!((world.ledger.len(), world.leases.held()), (0, 0));
    world.until("the lease is gone", || world.leases.count() == (0, 0)).await;
}

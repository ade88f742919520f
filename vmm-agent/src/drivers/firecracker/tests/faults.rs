//! Agents that are killed at any moment.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use ids::Epoch;
use rand::Rng as _;

use super::{
    super::FirecrackerDriver,
    world::{World, spec},
};
use crate::drivers::{Adopted, Driver as _, SpriteSpec};

const KILLS: usize = 200;
/// About how long the longest of the walks below takes.
const LATEST_MS: u64 = 30;

/// The last step that an agent has begun.
const PAUSING: u8 = 1;
const SUSPENDING: u8 = 2;
const RESUMING: u8 = 3;
const RESUMED: u8 = 4;

/// An agent's life. Its tasks end where they wait when it is killed; what it has begun on the disk, it ends.
fn agent<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
    killed: Option<Duration>,
) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let work = runtime.spawn(work);
    let outcome = runtime.block_on(async {
        match killed {
            Some(after) => tokio::time::timeout(after, work).await.ok(),
            None => Some(work.await),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(10));
    outcome.map(|outcome| outcome.expect("no panic"))
}

/// What the next agent does. Returns what it found, and whether the sprite had to be started cold.
async fn bring_back(driver: Arc<FirecrackerDriver>, sprite: SpriteSpec) -> (Option<Adopted>, bool) {
    let id = sprite.id;
    let adopted = driver.adopt(id).await.unwrap();
    let goes_on = match adopted {
        Some(Adopted::Running) => true,
        Some(Adopted::Paused | Adopted::Suspended) => driver.resume(id).await.is_ok(),
        None => false,
    };
    if !goes_on {
        driver.stop(id, Duration::ZERO).await.unwrap();
        driver.prepare(&sprite).await.unwrap();
        driver.start(&sprite, Epoch(1)).await.unwrap();
    }
    (adopted, !goes_on)
}

#[test]
fn an_agent_that_is_killed_at_any_moment_loses_no_memory_and_uses_none_twice() {
    let world = Arc::new(World::new());
    let sprite = spec();
    let id = sprite.id;
    let mut known = None;
    let mut step = 0;
    let mut seen = BTreeMap::new();
    for turn in 0..KILLS {
        let (driver, own) = (Arc::new(world.another_driver()), sprite.clone());
        let (adopted, cold) = agent(bring_back(driver, own), None).expect("it was not killed");
        let counting = Arc::clone(&world);
        let now = agent(async move { counting.count(id).await }, None).expect("it was not killed").unwrap();
        // From the second turn on.
        if let Some((nonce, count)) = known {
            assert!(!cold, "turn {turn}: its memory was lost in step {step}, found {adopted:?}");
            assert_eq!(now.0, nonce, "turn {turn}: another memory");
            assert!(now.1 > count, "turn {turn}: a memory of before, {} after {count}", now.1);
        }
        known = Some(now);

        let reached = Arc::new(AtomicU8::new(0));
        let (driver, at) = (Arc::new(world.another_driver()), Arc::clone(&reached));
        let suspends = rand::rng().random_bool(0.8);
        let walk = async move {
            if driver.adopt(id).await.is_err() {
                return;
            }
            at.store(PAUSING, Ordering::Relaxed);
            // What is cut off in a dying agent ends in an error; one that is none is seen in the next turn.
            if driver.pause(id).await.is_err() {
                return;
            }
            if suspends {
                at.store(SUSPENDING, Ordering::Relaxed);
                if driver.suspend(id).await.is_err() {
                    return;
                }
            }
            at.store(RESUMING, Ordering::Relaxed);
            if driver.resume(id).await.is_ok() {
                at.store(RESUMED, Ordering::Relaxed);
            }
        };
        agent(walk, Some(Duration::from_micros(rand::rng().random_range(0..LATEST_MS * 1000))));
        step = reached.load(Ordering::Relaxed);
        *seen.entry(step).or_insert(0) += 1;
    }
    println!("killed after step: {seen:?}");
    assert!(seen.len() > 2, "they were all killed at the same step: {seen:?}");
}

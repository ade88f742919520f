//! Runs the simulation for as long and as often as one likes.

use std::process::ExitCode;

use simulation::{Report, Scenario, World};

const USAGE: &str = "\
Runs the pure core under a simulated clock and checks its promises after every step.

Usage: simulation [--steps N] [--seed S]

  --steps N  events in all, over all scenarios [default: 1000000]
  --seed S   the first seed; further runs count up from it [default: 1]

A broken promise ends the run with the seed and the last events; the same seed shows it again.";

/// Events in one world, before it is brought to rest and another one begins.
const STEPS_EACH: u64 = 20_000;

fn main() -> ExitCode {
    let (steps, seed) = match arguments(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(what) => {
            eprintln!("{what}\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match run(steps, seed) {
        Ok(report) => {
            println!("{report:#?}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> Result<Option<(u64, u64)>, String> {
    let (mut steps, mut seed) = (1_000_000, 1);
    while let Some(name) = arguments.next() {
        let number = match name.as_str() {
            "--steps" => &mut steps,
            "--seed" => &mut seed,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("unknown argument {other:?}")),
        };
        let value = arguments.next().unwrap_or_default();
        *number = value.parse().map_err(|_| format!("{name} takes a whole number, not {value:?}"))?;
    }
    Ok(Some((steps, seed)))
}

fn run(steps: u64, first_seed: u64) -> Result<Report, String> {
    let mut all = Report::default();
    let mut seed = first_seed;
    while all.steps < steps {
        for (name, scenario) in Scenario::all() {
            let world = World::new(scenario, seed);
            let report = run_one(world, STEPS_EACH.min(steps)).map_err(|what| format!("{name}: {what}"))?;
            all.add(&report);
        }
        seed += 1;
    }
    Ok(all)
}

fn run_one(mut world: World, steps: u64) -> Result<Report, String> {
    world.run(steps).map_err(|violation| violation.to_string())?;
    world.finish().map_err(|violation| violation.to_string())
}

//! What is counted, for Prometheus. Names carry base units; labels are closed enums, never names of
//! sprites, so that the number of series is bounded.

use std::time::Duration;

use agent_api::PublicState;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};
use telemetry::LostLines;

/// From a paused sprite's millisecond to the end of a hold budget.
const WAKE_BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

const CLASSES: [Class; 4] = [Class::Url, Class::Api, Class::Inside, Class::Unknown];
const STATUSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// How an acquire ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wake {
    Granted(PublicState),
    Refused,
    TimedOut,
    Unreachable,
}

/// Which requests are counted apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// To a sprite's URL.
    Url,
    /// To the API, answered here.
    Api,
    /// To the API, forwarded into a sprite.
    Inside,
    /// Not even that could be told.
    Unknown,
}

impl Class {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Api => "api",
            Self::Inside => "inside",
            Self::Unknown => "unknown",
        }
    }
}

/// Whose side of the gateway broke a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Upstream,
    Downstream,
    Internal,
}

/// All counters of this process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    wake_seconds: HistogramVec,
    wakes: IntCounterVec,
    /// By class and by hundreds of the status, so that a request looks nothing up.
    requests: [[IntCounter; STATUSES.len()]; CLASSES.len()],
    refusals: IntCounterVec,
    errors: IntCounterVec,
    request_seconds: Histogram,
    held: IntGauge,
    connections: IntGauge,
    leases: IntGauge,
    upstream_connections: IntGauge,
    lost_log_lines: LostLines,
}

/// What is so many now; set when somebody asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub(crate) held: usize,
    pub(crate) connections: usize,
    pub(crate) leases: usize,
    pub(crate) upstream_connections: usize,
}

impl Metrics {
    /// # Errors
    /// Only if two metrics had one name.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let wake_seconds = HistogramVec::new(
            HistogramOpts::new("gateway_wake_duration_seconds", "From the acquire to its answer.")
                .buckets(WAKE_BUCKETS.to_vec()),
            &["from", "outcome"],
        )?;
        registry.register(Box::new(wake_seconds.clone()))?;
        let request_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "gateway_request_first_byte_seconds",
                "From a request's head to the answer's.",
            )
            .buckets(WAKE_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(request_seconds.clone()))?;
        let requests = counters("gateway_requests_total", "Requests answered.", &["class", "status"])?;
        Ok(Self {
            wakes: counters("gateway_wakes_total", "Acquires that were granted.", &["from"])?,
            requests: CLASSES
                .map(|class| STATUSES.map(|status| requests.with_label_values(&[class.as_str(), status]))),
            refusals: counters(
                "gateway_refusals_total",
                "Requests the gateway itself refused.",
                &["reason"],
            )?,
            errors: counters("gateway_connection_errors_total", "Broken connections, by side.", &["side"])?,
            held: gauge("gateway_held_requests", "Requests that wait for their sprite to wake.")?,
            connections: gauge("gateway_connections", "Open client connections.")?,
            leases: gauge("gateway_leases", "Leases held.")?,
            upstream_connections: gauge("gateway_upstream_connections", "Open connections into sprites.")?,
            lost_log_lines: LostLines::register(&registry, "gateway_log_lines_lost_total")?,
            wake_seconds,
            request_seconds,
            registry,
        })
    }

    pub(crate) fn wake(&self, wake: Wake, took: Duration) {
        let (from, outcome) = match wake {
            Wake::Granted(from) => {
                let from = state(from);
                self.wakes.with_label_values(&[from]).inc();
                (from, "granted")
            }
            Wake::Refused => ("unknown", "refused"),
            Wake::TimedOut => ("unknown", "timed_out"),
            Wake::Unreachable => ("unknown", "unreachable"),
        };
        self.wake_seconds.with_label_values(&[from, outcome]).observe(took.as_secs_f64());
    }

    pub(crate) fn request(&self, class: Class, status: u16, first_byte: Duration) {
        let status = match status {
            0 => 0,
            100..500 => usize::from(status / 100),
            _ => 5,
        };
        self.requests[class as usize][status].inc();
        self.request_seconds.observe(first_byte.as_secs_f64());
    }

    /// `reason` is the stable code of the answer: there are as many as the source has.
    pub(crate) fn refusal(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    pub(crate) fn error(&self, side: Side) {
        let side = match side {
            Side::Upstream => "upstream",
            Side::Downstream => "downstream",
            Side::Internal => "internal",
        };
        self.errors.with_label_values(&[side]).inc();
    }

    /// The whole of it in Prometheus' text format.
    pub(crate) fn render(&self, levels: Levels) -> Vec<u8> {
        let set = |gauge: &IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.held, levels.held);
        set(&self.connections, levels.connections);
        set(&self.leases, levels.leases);
        set(&self.upstream_connections, levels.upstream_connections);
        self.lost_log_lines.update();
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "The metrics can't be written");
        }
        text
    }
}

const fn state(state: PublicState) -> &'static str {
    match state {
        PublicState::Running => "running",
        PublicState::Warm => "warm",
        PublicState::Cold => "cold",
    }
}

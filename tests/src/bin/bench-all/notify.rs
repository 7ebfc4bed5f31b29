//! `/notify`: rate, latency and CPU per push over connections, over stored tokens, and behind a slow PNM,
//! each beside the pass-through in the same rounds.

use std::sync::Arc;
use std::time::Duration;

use matrix2acrobits_tests::marks::MarkKey;

use crate::bench::{Bench, Error, Gateway, Helper, Sample, Upstream, ratio};
use crate::chart::{Axis, Panel, Series, chart};
use crate::connection::post;
use crate::fill::{self, APP_ID, Rows};
use crate::load::{self, Load, Pace, Requests};
use crate::report::{Chart, Goal, Report, Table, short};
use crate::system;

pub(crate) const PATH: &str = "/_matrix/push/v1/notify";
/// What a push that went through is answered.
pub(crate) const TAKEN: &[u8] = br#"{"rejected":[]}"#;

/// Notifications as Synapse sends them with `event_id_only`, one device each, for any of `tokens` phones with
/// equal chance, which no cache likes; every event is a new one, and comes from a pusher with our mark.
pub(crate) fn requests(tokens: u64) -> Requests {
    let key = MarkKey::new(&fill::MARK_KEY);
    Arc::new(move |number, into| {
        let phone = mixed(number) % tokens;
        notification(&key, number, (phone, phone), into);
    })
}

/// Notification `number` for a phone, to the push token with this number.
pub(crate) fn notification(
    key: &MarkKey,
    number: u64,
    (phone, token): (u64, u64),
    into: &mut Vec<u8>,
) {
    let (token, selector) = (fill::token(token), fill::selector(phone));
    let mark = key.mark(&token);
    let body = format!(
        r#"{{"notification":{{"event_id":"${number:043}","room_id":"!IaZKy7HV3BbBltwUTv6PaFNAhT-QNqNF5Rj0SHhOEoc","counts":{{"unread":2}},"prio":"high","devices":[{{"app_id":"{APP_ID}","pushkey":"{token}","pushkey_ts":1795330844,"data":{{"format":"event_id_only","selector":"{selector}","mark":"{mark}"}}}}]}}}}"#
    );
    post(PATH, &body, into);
}

/// Chance that is the same in every run (SplitMix64).
pub(crate) fn mixed(number: u64) -> u64 {
    let z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Bench {
    async fn notify(
        &self,
        target: (std::net::SocketAddr, u32),
        upstream: &Upstream,
        connections: usize,
        pace: Pace,
        tokens: u64,
    ) -> Result<Sample, Error> {
        let requests = requests(tokens);
        self.measure(target, upstream, connections, pace, (&requests, TAKEN))
            .await
    }

    async fn api_with(&self, tokens: u64, upstream: &Upstream) -> Result<Gateway, Error> {
        let file = self.new_file().await?;
        fill::fill(&file, tokens, &[Rows::Tokens]).await?;
        self.api(&file, Some(upstream)).await
    }

    /// Interleaved rounds of both.
    async fn both(
        &self,
        (base, ours): (&Helper, &Gateway),
        upstream: &Upstream,
        connections: usize,
        pace: Pace,
    ) -> Result<(Vec<Sample>, Vec<Sample>), Error> {
        let (mut of_base, mut of_ours) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            of_base.push(
                self.notify(base.target(), upstream, connections, pace, FEW)
                    .await?,
            );
            of_ours.push(
                self.notify(ours.target(), upstream, connections, pace, FEW)
                    .await?,
            );
        }
        Ok((of_base, of_ours))
    }
}

const FEW: u64 = 1_000;
const HEADER: [&str; 9] = [
    "",
    "pushes/s",
    "CPU µs",
    "busy",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "new conn.",
    "sent",
];

fn row(table: &mut Table, name: String, sample: &Sample) {
    table.row([
        name,
        short(sample.rate),
        format!("{:.1}", sample.cpu),
        format!("{:.2}", sample.busy),
        format!("{:.2}", sample.p50),
        format!("{:.2}", sample.p99),
        format!("{:.2}", sample.p999),
        format!("{:.4}", sample.connected),
        format!("{:.3}", sample.upstream),
    ]);
}

/// 16, 64 and 256 connections, closed loop; then an open one at a rate that both can hold.
pub(crate) async fn over_connections(bench: &Bench) -> Result<Report, Error> {
    let upstream = bench.stand_in(Duration::ZERO).await?;
    let base = bench.pass_through(&upstream).await?;
    let ours = bench.api_with(FEW, &upstream).await?;
    let idle = system::memory(ours.pid);
    let mut report = Report::default();
    let mut table = Table::new("Over connections, 1,000 tokens, PNM instant", &HEADER);
    let counts = [16, 64, 256];
    let mut lines = [const { Vec::new() }; 4];
    let mut slowest = f64::MAX;
    for connections in counts {
        let (b, o) = bench
            .both((&base, &ours), &upstream, connections, Pace::Closed)
            .await?;
        let (bm, om) = (Sample::median(&b), Sample::median(&o));
        row(&mut table, format!("pass-through, {connections}"), &bm);
        row(&mut table, format!("api, {connections}"), &om);
        let share = ratio(&o, &b, |s| s.rate);
        let goal = format!("rate of the pass-through's, {connections} connections");
        report.goals.push(Goal::at_least(goal, 0.85, share, " ×"));
        let cpu = ratio(&o, &b, |s| s.cpu);
        let goal = format!("CPU of the pass-through's, {connections} connections");
        report.goals.push(Goal::at_most(goal, 1.15, cpu, " ×"));
        slowest = slowest.min(bm.rate);
        report.goals.push(Goal::at_most(
            format!("new PNM connections per push, {connections} connections"),
            0.02,
            om.connected,
            "",
        ));
        for (line, figure) in lines.iter_mut().zip([bm.rate, om.rate, bm.p99, om.p99]) {
            line.push(figure);
        }
    }
    let rate = (slowest * 0.4 / 1000.0).floor().max(1.0) * 1000.0;
    let (b, o) = bench
        .both((&base, &ours), &upstream, 64, Pace::Open(rate))
        .await?;
    let open = |name: &str| format!("{name}, open, {}/s", short(rate));
    row(&mut table, open("pass-through"), &Sample::median(&b));
    row(&mut table, open("api"), &Sample::median(&o));
    report.tables.push(table);

    let (ours, base) = (system::memory(ours.pid), system::memory(base.pid));
    let mut table = Table::new("Resident memory, MiB", &["", "idle", "after", "most"]);
    let mib = |figure: f64| format!("{figure:.1}");
    table.row([
        "pass-through".into(),
        "–".into(),
        mib(base.now),
        mib(base.most),
    ]);
    table.row(["api".into(), mib(idle.now), mib(ours.now), mib(ours.most)]);
    report.tables.push(table);
    report.goals.push(Goal::at_most(
        "memory of the api, idle",
        12.0,
        idle.now,
        " MiB",
    ));
    report.goals.push(Goal::at_most(
        "memory of the api, under load",
        32.0,
        ours.most,
        " MiB",
    ));

    let labels = counts.map(|count| count.to_string());
    report.charts.push(connections_chart(&labels, &lines));
    Ok(report)
}

fn connections_chart(labels: &[String], [b, o, bp, op]: &[Vec<f64>; 4]) -> Chart {
    let axis = Axis {
        title: "connections",
        labels,
    };
    Chart {
        file: "notify-connections.svg",
        about: "Rate and 99th percentile of /notify over connections, beside the pass-through",
        svg: chart(
            &axis,
            &[
                Panel {
                    title: "pushes per second",
                    series: &[Series("pass-through", b), Series("api", o)],
                },
                Panel {
                    title: "p99, ms",
                    series: &[Series("pass-through", bp), Series("api", op)],
                },
            ],
        ),
    }
}

/// The same with 1 thousand to 1 million stored tokens, all of which are pushed to in turn.
pub(crate) async fn over_tokens(bench: &Bench) -> Result<Report, Error> {
    let upstream = bench.stand_in(Duration::ZERO).await?;
    let base = bench.pass_through(&upstream).await?;
    let sizes: &[u64] = if bench.quick {
        &[1_000, 100_000, 1_000_000]
    } else {
        &[1_000, 10_000, 100_000, 1_000_000]
    };
    let mut apis = Vec::new();
    for tokens in sizes {
        apis.push(bench.api_with(*tokens, &upstream).await?);
    }
    let mut of_base = Vec::new();
    let mut of_ours = vec![Vec::new(); sizes.len()];
    for _ in 0..bench.rounds {
        let pace = Pace::Closed;
        of_base.push(
            bench
                .notify(base.target(), &upstream, 64, pace, FEW)
                .await?,
        );
        for ((tokens, api), samples) in sizes.iter().zip(&apis).zip(&mut of_ours) {
            samples.push(
                bench
                    .notify(api.target(), &upstream, 64, pace, *tokens)
                    .await?,
            );
        }
    }
    let mut report = Report::default();
    let mut table = Table::new("Over stored tokens, 64 connections, PNM instant", &HEADER);
    let middle = Sample::median(&of_base);
    row(&mut table, "pass-through".into(), &middle);
    let mut memory = Table::new("Resident memory of the api, MiB", &["", "after", "most"]);
    let (mut rates, mut latencies) = (Vec::new(), Vec::new());
    for ((tokens, api), samples) in sizes.iter().zip(&apis).zip(&of_ours) {
        let (name, ours) = (format!("{tokens} tokens"), Sample::median(samples));
        row(&mut table, name.clone(), &ours);
        let size = system::memory(api.pid);
        memory.row([
            name.clone(),
            format!("{:.1}", size.now),
            format!("{:.1}", size.most),
        ]);
        if *tokens > FEW {
            let cpu = ratio(samples, &of_ours[0], |s| s.cpu);
            let goal = format!("CPU of that with 1,000 tokens, {name}");
            report.goals.push(Goal::at_most(goal, 1.05, cpu, " ×"));
        }
        rates.push(ours.rate);
        latencies.push(ours.p99);
    }
    report.tables.extend([table, memory]);
    if let Some(api) = apis.last() {
        let most = system::memory(api.pid).most;
        let goal = "memory of the api with a million tokens";
        report.goals.push(Goal::at_most(goal, 80.0, most, " MiB"));
    }
    let flat = |figure: f64| vec![figure; sizes.len()];
    let labels: Vec<_> = sizes.iter().map(u64::to_string).collect();
    let below = Axis {
        title: "stored tokens",
        labels: &labels,
    };
    let (base_rate, base_p99) = (flat(middle.rate), flat(middle.p99));
    report.charts.push(Chart {
        file: "notify-tokens.svg",
        about: "Rate and 99th percentile of /notify over stored tokens, beside the pass-through",
        svg: chart(
            &below,
            &[
                Panel {
                    title: "pushes per second",
                    series: &[Series("pass-through", &base_rate), Series("api", &rates)],
                },
                Panel {
                    title: "p99, ms",
                    series: &[Series("pass-through", &base_p99), Series("api", &latencies)],
                },
            ],
        ),
    });
    Ok(report)
}

/// As PNM is reached in the field, over HTTP/1.1.
pub(crate) async fn over_tls(bench: &Bench) -> Result<Report, Error> {
    let upstream = bench.stand_in_with_tls().await?;
    let base = bench.pass_through(&upstream).await?;
    let ours = bench.api_with(FEW, &upstream).await?;
    let mut report = Report::default();
    let mut table = Table::new("TLS to PNM, 1,000 tokens, PNM instant", &HEADER);
    for connections in [16, 64] {
        let (b, o) = bench
            .both((&base, &ours), &upstream, connections, Pace::Closed)
            .await?;
        let median = Sample::median(&o);
        let name = format!("pass-through, {connections}");
        row(&mut table, name, &Sample::median(&b));
        row(&mut table, format!("api, {connections}"), &median);
        let goal = format!("CPU of the pass-through's, {connections} connections");
        let cpu = ratio(&o, &b, |s| s.cpu);
        report.goals.push(Goal::at_most(goal, 1.15, cpu, " ×"));
        let goal = format!("handshakes per push, {connections} connections");
        let handshakes = median.connected;
        report.goals.push(Goal::at_most(goal, 0.02, handshakes, ""));
    }
    report.tables.push(table);
    Ok(report)
}

/// A PNM that takes 50 ms, and 256 connections that wait for it.
pub(crate) async fn slow_pnm(bench: &Bench) -> Result<Report, Error> {
    let upstream = bench.stand_in(Duration::from_millis(50)).await?;
    let base = bench.pass_through(&upstream).await?;
    let ours = bench.api_with(FEW, &upstream).await?;
    let (b, o) = bench
        .both((&base, &ours), &upstream, 256, Pace::Closed)
        .await?;
    let mut report = Report::default();
    let mut table = Table::new("PNM takes 50 ms, 256 connections, 1,000 tokens", &HEADER);
    let median = Sample::median(&o);
    row(&mut table, "pass-through".into(), &Sample::median(&b));
    row(&mut table, "api".into(), &median);
    report.tables.push(table);
    report.goals.extend([
        Goal::at_least(
            "rate of the pass-through's",
            0.96,
            ratio(&o, &b, |s| s.rate),
            " ×",
        ),
        Goal::at_most(
            "p99 of the pass-through's",
            1.05,
            ratio(&o, &b, |s| s.p99),
            " ×",
        ),
        Goal::at_most("new PNM connections per push", 0.02, median.connected, ""),
    ]);
    let size = system::memory(ours.pid);
    report
        .goals
        .push(Goal::at_most("memory of the api", 32.0, size.most, " MiB"));
    report.tables.push(hanging_pnm(bench).await?);
    Ok(report)
}

/// As many requests as the api takes at a time, and a PNM that answers none of them in time.
async fn hanging_pnm(bench: &Bench) -> Result<Table, Error> {
    const WAITING: u32 = 2_048;
    let upstream = bench.stand_in(Duration::from_secs(15)).await?;
    let ours = bench.api_with(FEW, &upstream).await?;
    let idle = system::memory(ours.pid).now;
    let load = Load {
        addr: ours.addr,
        connections: usize::try_from(WAITING)?,
        // Each connection sends one request, and waits until the api gives it up.
        pace: Pace::Closed,
        time: Duration::from_secs(5),
        requests: requests(FEW),
        expected: TAKEN,
    };
    let outcome = load::run(&load).await;
    let most = system::memory(ours.pid).most;
    let mut table = Table::new(
        "PNM takes 15 s, 2,048 requests wait",
        &["", "idle MiB", "most MiB", "KiB a request", "answered 200"],
    );
    table.row([
        "api".into(),
        format!("{idle:.1}"),
        format!("{most:.1}"),
        format!("{:.1}", (most - idle) * 1024.0 / f64::from(WAITING)),
        outcome.good.to_string(),
    ]);
    Ok(table)
}

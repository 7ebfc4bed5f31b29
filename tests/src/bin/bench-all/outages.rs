//! The stand-ins of `soak` end, and come back at their own addresses, so that the programs under test find them again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::bench::{Bench, Error, Upstream};

/// A loopback address that no client has as its own. A client's port is picked by the system, so on 127.0.0.1 it could
/// be that of a stand-in that is gone, which then could not come back.
pub(crate) const STAND_INS: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 0);
/// Each stand-in goes once in this time.
const PERIOD: Duration = Duration::from_mins(5);
/// When it goes, and for how long, in parts of the period: 30 s and 10 s.
const HOMESERVER_GOES: (f64, f64) = (0.3, 0.1);
const PNM_GOES: (f64, f64) = (0.8, 1.0 / 30.0);

/// From when to when a stand-in is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outage {
    pub(crate) of_pnm: bool,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

/// In short runs the period, and with it the outages, is a third of the run.
pub(crate) fn plan(start: Instant, total: Duration) -> Vec<Outage> {
    let period = PERIOD.min(total / 3);
    let mut outages = Vec::new();
    let mut begin = start;
    while begin < start + total {
        for (of_pnm, (after, long)) in [(false, HOMESERVER_GOES), (true, PNM_GOES)] {
            let from = begin + period.mul_f64(after);
            let to = from + period.mul_f64(long);
            outages.push(Outage { of_pnm, from, to });
        }
        begin += period;
    }
    outages.retain(|outage| outage.to < start + total);
    outages
}

/// Ends and restarts the stand-ins, each at its own address, and hands over the last ones.
pub(crate) async fn play(
    bench: &Bench,
    outages: &[Outage],
    homeserver: Upstream,
    pnm: Upstream,
) -> Result<[Upstream; 2], Error> {
    let [mut homeserver, mut pnm] = [homeserver, pnm];
    for outage in outages {
        let it = if outage.of_pnm {
            &mut pnm
        } else {
            &mut homeserver
        };
        tokio::time::sleep_until(outage.from).await;
        it.end().await?;
        tokio::time::sleep_until(outage.to).await;
        *it = bench.stand_in_at(it.addr).await?;
    }
    Ok([homeserver, pnm])
}

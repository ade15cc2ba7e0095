use std::time::Duration;

use http::StatusCode;
use portcullis_plugin::{ExchangeBuilder, HookName, Reason, Verdict};

use super::*;

fn outcome(end: End) -> Outcome {
    Outcome {
        end,
        status: Some(StatusCode::OK),
        request_bytes: 0,
        response_bytes: 0,
        duration: Duration::from_millis(1),
        upstream_duration: None,
        grpc_status: None,
    }
}

fn keep(records: &Records, plan: &RecordPlan, exchange: &mut Exchange, end: End) {
    let names = Arc::new(WorkerNames(Names::new(1, &[])));
    let ended =
        Ended { exchange, outcome: outcome(end), chain: &Chain::default(), names: &names, listener: 0 };
    records.keep(0, plan, ended, || 0);
}

fn numbered(number: u128) -> Exchange {
    ExchangeBuilder::get("/").with(move |parts| parts.id = RequestId::Bits(number)).build()
}

#[test]
fn what_is_too_long_is_cut_off() {
    let records = Records::new(1);
    let plan = RecordPlan { refused: 1, passed: 1, ..RecordPlan::default() };
    let path = format!("/{}", "a".repeat(2 * MAX_TEXT));
    let mut exchange = ExchangeBuilder::get(&path).build();
    let cursor = Cursor { plugin: 0, hook: HookName::OnUpstream };
    for _ in 0..2 * MAX_STEPS {
        exchange.core().step(cursor, Verdict::Continue, Instant::now(), Duration::ZERO);
    }
    keep(&records, &plan, &mut exchange, End::Complete);
    let record = records.find(&format!("{:032x}", 1)).unwrap();
    assert_eq!((record.path.len(), record.steps.len()), (MAX_TEXT, MAX_STEPS));
}

#[test]
fn the_oldest_are_forgotten_first_whatever_room_there_was_before() {
    let records = Records::new(1);
    let mut next = 0;
    for room in [3, 5, 2, 4, 0, 3] {
        let plan = RecordPlan { refused: 1, passed: room, ..RecordPlan::default() };
        for _ in 0..7 {
            next += 1;
            keep(&records, &plan, &mut numbered(next), End::Complete);
            let kept: Vec<_> =
                records.latest(false, 10, |_| true).into_iter().map(|record| record.id).collect();
            let newest = (0..room as u128).map(|back| next.saturating_sub(back)).take_while(|id| *id > 0);
            let newest: Vec<_> = newest.map(|id| format!("{id:032x}")).collect();
            assert!(
                newest.starts_with(&kept) && (kept.len() == room || next % 7 != 0),
                "{kept:?} of {newest:?}"
            );
        }
    }
}

#[test]
fn what_nobody_asks_about_pushes_out_nothing_that_somebody_may() {
    let records = Records::new(1);
    let plan = RecordPlan { refused: 2, passed: 2, ..RecordPlan::default() };
    keep(&records, &plan, &mut numbered(1), End::ClientGone);
    let decider =
        Decider { by: "core.route".into(), hook: None, reason: Some(Reason::Borrowed("route.none")) };
    let mut refused = numbered(2);
    refused.core().decider = Some(Box::new(decider));
    keep(&records, &plan, &mut refused, End::Complete);
    for number in 3..10 {
        keep(&records, &plan, &mut numbered(number), End::Complete);
    }
    let ids = |refused| {
        records.latest(refused, 10, |_| true).into_iter().map(|record| record.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(true), [2, 1].map(|id| format!("{id:032x}")));
    assert_eq!(ids(false), [9, 8].map(|id| format!("{id:032x}")));
    assert_eq!(records.find(&format!("{:032x}", 2)).unwrap().decided_by.unwrap().by, "core.route");
    assert!(records.find(&format!("{:032x}", 3)).is_none() && records.find("nothing").is_none());
}

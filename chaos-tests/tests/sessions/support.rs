//! Short ways to do what most tests do.

use std::sync::Arc;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::{Engine, Session, SessionOptions};
use mayfly_guest::channel::ExecRequest;

/// Opens an engine on the host's own roots, and the golden image of the tests.
pub async fn engine() -> (Engine, Arc<LoadedGolden>) {
    let engine = Engine::open(Home::shared().layout().clone()).await.expect("an engine");
    let golden = engine.golden(GOLDEN).await.expect("the golden image");
    (engine, golden)
}

pub async fn start(engine: &Engine, golden: &Arc<LoadedGolden>) -> Session {
    engine.start_session(golden, &SessionOptions::default()).await.expect("a session")
}

/// Runs a shell script in the guest; returns its output without the last newline.
pub async fn sh(session: &Session, script: &str) -> String {
    let run = async {
        session.guest().exec(ExecRequest::new(["/bin/sh", "-c", script])).await?.output().await
    };
    let output = session.guarded(run).await.expect("a command in the guest");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert!(output.success(), "{script}: {}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

//! The wire protocol between the engine and the guest agent.

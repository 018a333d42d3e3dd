//! The engine turned by hand, on a clock that stands still.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ol_runtime::ManualClock;
use ol_serve::{
    Answer, Completion, EngineHandle, EngineOptions, EngineParts, Event, FinishReason,
    GenerateError, GenerateRequest, Scheduler, SubmitError, Turn,
};

use crate::support::{base, oracle, tokenizer};

/// Turns after which a test gives up: nothing here takes so many.
const TURNS_MAX: usize = 20_000;

pub(crate) struct Driven {
    pub(crate) engine: EngineHandle,
    pub(crate) scheduler: Scheduler,
    pub(crate) clock: Arc<ManualClock>,
}

impl Driven {
    pub(crate) fn new(options: EngineOptions) -> Self {
        let clock = Arc::new(ManualClock::new(0));
        let parts = EngineParts {
            clock: Arc::clone(&clock) as _,
            ..EngineParts::new(base(), tokenizer(), 1)
        };
        let (engine, scheduler) = EngineHandle::without_thread(parts, options).unwrap();
        Self {
            engine,
            scheduler,
            clock,
        }
    }

    pub(crate) fn submit(&self, request: &GenerateRequest) -> Result<Reader, SubmitError> {
        let answer = self.engine.submit(request.clone())?;
        Ok(Reader::new(request.clone(), answer))
    }

    /// Turns until there is nothing to do.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        for _ in 0..TURNS_MAX {
            if self.scheduler.turn() != Turn::Worked {
                return;
            }
        }
        panic!("the engine does not come to an end");
    }

    /// Nobody runs and waits, and every page is free or kept for later.
    #[track_caller]
    pub(crate) fn check_empty(&self) {
        let stats = self.engine.stats();
        assert_eq!(
            (stats.n_running, stats.n_waiting, stats.n_pages_used),
            (0, 0, 0)
        );
    }
}

/// Reads an answer as far as it is there.
pub(crate) struct Reader {
    pub(crate) request: GenerateRequest,
    answer: Option<Answer>,
    pub(crate) token_ids: Vec<u32>,
    text: String,
    pub(crate) end: Option<Result<Completion, GenerateError>>,
}

impl Reader {
    pub(crate) fn new(request: GenerateRequest, answer: Answer) -> Self {
        Self {
            request,
            answer: Some(answer),
            token_ids: Vec::new(),
            text: String::new(),
            end: None,
        }
    }

    /// Takes what has come; whether the answer has begun.
    pub(crate) fn read(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        while let Some(answer) = &mut self.answer {
            let next = pin!(answer.next()).poll(&mut context);
            match next {
                Poll::Pending => break,
                Poll::Ready(Some(Event::Token { id, text_delta, .. })) => {
                    assert!(self.end.is_none(), "a token after the end");
                    self.token_ids.push(id);
                    self.text.push_str(&text_delta);
                }
                Poll::Ready(Some(Event::Done(completion))) => {
                    assert_eq!(completion.token_ids, self.token_ids);
                    self.text.push_str(&completion.text_delta);
                    self.end = Some(Ok(completion));
                }
                Poll::Ready(Some(Event::Failed(error))) => self.end = Some(Err(error)),
                Poll::Ready(None) => {
                    assert!(self.end.is_some(), "an answer without an end");
                    self.answer = None;
                }
            }
        }
        !self.token_ids.is_empty() || self.end.is_some()
    }

    /// The client goes away.
    pub(crate) fn cancel(&mut self) {
        self.read();
        self.answer = None;
    }

    /// Compares what was read with what the request gets alone: all of it, or
    /// the beginning if it was cut short.
    #[track_caller]
    pub(crate) fn check(&mut self) {
        self.read();
        let (text, completion) = oracle(&self.request);
        match &self.end {
            Some(Ok(end)) if end.finish_reason != FinishReason::Deadline => {
                assert_eq!(self.token_ids, completion.token_ids);
                assert_eq!(self.text, text);
                assert_eq!(end.finish_reason, completion.finish_reason);
                assert_eq!(end.stop_reason, completion.stop_reason);
                assert_eq!(end.tokens_in, completion.tokens_in);
            }
            Some(Ok(_)) => {
                assert!(!self.token_ids.is_empty());
                assert!(completion.token_ids.starts_with(&self.token_ids));
            }
            Some(Err(GenerateError::Deadline)) => assert!(self.token_ids.is_empty()),
            // It may have made room in its middle, and lost its adapter then.
            Some(Err(GenerateError::Adapter(_))) => {
                assert!(completion.token_ids.starts_with(&self.token_ids));
            }
            Some(Err(error)) => panic!("{error}"),
            None => assert!(completion.token_ids.starts_with(&self.token_ids)),
        }
    }
}

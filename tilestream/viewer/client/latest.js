// Of the answers that a part of the page waits for, only that to its newest request is taken.

import { say } from "./dom.js";

/** Requests of one kind: each new one takes the place of the one before, of which neither the answer nor an error counts any more. */
export class Latest {
  #asked = null;

  get waits() {
    return this.#asked !== null;
  }

  /** Whether the answer was taken. `ask` gets a signal for what it fetches; `take` waits for nothing, so that nothing comes between. */
  async run(ask, take, wrong = (error) => say(error.message)) {
    this.stop();
    const asked = (this.#asked = new AbortController()), { signal } = asked;
    let answer, problem;
    try {
      answer = await ask(signal);
    } catch (error) {
      problem = error;
    }
    if (signal.aborted) return false;
    this.#asked = null;
    if (problem) wrong(problem);
    else take(answer);
    return !problem;
  }

  /** Nobody waits for an answer any more. */
  stop() {
    this.#asked?.abort();
    this.#asked = null;
  }
}

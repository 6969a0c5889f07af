// What the page says when something is not as it should be: what happened, and what helps.

import { ENDED, HUNG_UP, LOST, UNCONNECTED } from "./call.js";
import { UNREACHABLE } from "./server.js";

const MICROPHONE = {
  denied: "The browser blocks the microphone. Allow it beside the address, then press the button again.",
  none: "No microphone was found. Connect one, or type during the call.",
  busy: "Another program holds the microphone. Close it, then press the button again.",
  insecure: "Browsers give the microphone to secure pages alone. Open this page by https.",
  failed: "The microphone could not be opened.",
};

/** @param {string} reason of NoMicrophone */
export const withoutMicrophone = (reason) => MICROPHONE[reason];

/** One line about what the server refused. */
export function refusal(error) {
  switch (error.code) {
    case UNREACHABLE:
      return "The server does not answer.";
    case "INVALID_ARGUMENT":
      return error.expected ? `Got ${error.got}; expected ${error.expected}.` : error.message;
    case "RESOURCE_EXHAUSTED":
      return error.quota ? `Your limit is reached: ${error.quota}, ${error.limit}.` : "The server is full.";
    case "UNAVAILABLE":
      return "The server cannot do this just now. Try again in a moment.";
    case "PERMISSION_DENIED":
      return "Your access key does not allow this.";
    case "UNAUTHENTICATED":
      return "The access key is not valid.";
    default:
      return error.message;
  }
}

/**
 * Why a call is over.
 *
 * @param why of Call's "over"
 * @param {string} name of the character
 * @returns {{title: string, text: string, detail?: string, wrong: boolean, wait?: number}}
 *   `wrong`: nobody wanted it; `wait`: seconds until another try makes sense
 */
export function ending(why, name) {
  switch (why) {
    case HUNG_UP:
      return { title: "Call ended", text: `You hung up on ${name}.`, wrong: false };
    case ENDED:
      return { title: "Call ended", text: "The call was ended by the server.", wrong: false };
    case LOST:
      return {
        title: "Connection lost",
        text: "The call could not be taken up again in time.",
        wrong: true,
      };
    case UNCONNECTED:
      return {
        title: "Not connected",
        text: "The server answered, but sound and pictures found no way through. A firewall may block WebRTC.",
        wrong: true,
      };
    default:
      return { ...failure(why), detail: why.code ? `${why.code}: ${why.message}` : why.message, wrong: true };
  }
}

function failure(error) {
  switch (error.code) {
    case UNREACHABLE:
      return { title: "Server not reached", text: "The server does not answer. Check your network, or try again later." };
    case "RESOURCE_EXHAUSTED":
      return error.quota ? overLimit(error) : full(error);
    case "UNAVAILABLE":
      return {
        title: "Not available just now",
        text: "The server is starting, stopping, or waits for one of its parts.",
        wait: error.retryAfter,
      };
    case "NOT_FOUND":
      return { title: "No longer there", text: "This character, or this call, is not there any more." };
    case "ABORTED":
      return { title: "Continued elsewhere", text: "Another tab or device has taken up this call." };
    case "DEADLINE_EXCEEDED":
      return { title: "Call ended", text: "Nothing was heard or done for too long, or the call reached its longest time." };
    case "UNAUTHENTICATED":
      return { title: "Access key needed", text: "The server does not accept the access key." };
    case "PERMISSION_DENIED":
      return { title: "Not allowed", text: "Your access key does not allow this call." };
    case "INVALID_ARGUMENT":
      return { title: "Call refused", text: "The server cannot use what this page or browser sent." };
    default:
      return { title: "Something went wrong", text: "The call ended because of a fault." };
  }
}

function full({ retryAfter }) {
  return { title: "All lines are busy", text: "Every place for a call is taken.", wait: retryAfter };
}

function overLimit({ quota, limit }) {
  return { title: "Your limit is reached", text: `Your access allows no more: ${quota}, ${limit}.` };
}

/** A place in line. */
export function inLine({ position, depth, expected_wait: wait }) {
  const place = position === 1 ? "You are next" : `Number ${position} of ${depth} in line`;
  return { title: place, text: wait === undefined ? "Waiting for a free line" : `About ${duration(wait)}` };
}

/** Seconds, as people say them. */
export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  return `${Math.round(seconds / 60)} minutes`;
}

/** A notice of the server's during a call; undefined when it is not for people. */
export function notice({ kind, message, time_left: left }, name) {
  switch (kind) {
    case "model_unavailable":
      return `${name} hears you, but cannot answer just now.`;
    case "model_available":
      return `${name} can answer again.`;
    case "model_rate_limited":
      return `${name} needs a pause${left ? ` of ${duration(left)}` : ""}.`;
    case "ending_soon":
      return `This call ends in ${duration(left ?? 0)}.`;
    case "false_interruption":
      return undefined;
    default:
      return message;
  }
}

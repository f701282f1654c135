// Runs the suite's tests once, in a worker: the suite keeps its results in module state, which each worker has anew.

import { parentPort, workerData } from 'node:worker_threads'
import fetch from 'node-fetch'
import { getResults, runTests } from 'http-cache-tests/client/runner.mjs'
import { suites } from './tests.mjs'

// A test that hangs is an error of that test, not the end of the run; the longest takes 6 s.
const ANSWER_WITHIN_MS = 20_000
const DONE_WITHIN_MS = 180_000

const { base, ids, dump } = workerData
const chosen = suites.map(suite => ({
  ...suite,
  tests: suite.tests.filter(test => ids === undefined || ids.includes(test.id)).map(test => ({ ...test, dump }))
}))
const answer = (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(ANSWER_WITHIN_MS) })

let deadline
const late = new Promise(resolve => { deadline = setTimeout(resolve, DONE_WITHIN_MS) })
await Promise.race([runTests(chosen, answer, false, base), late])
clearTimeout(deadline)
parentPort.postMessage(getResults())

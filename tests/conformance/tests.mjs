// The suite's tests that a shared cache is held to, as the suite's own command-line client chooses them.

import everywhere from 'http-cache-tests/tests/index.mjs'
import surrogate from 'http-cache-tests/tests/surrogate-control.mjs'

export const suites = [...everywhere, surrogate]

/** By id: kind (`required`, `optimal` or `check`), name, and the ids it depends on. */
export const tests = new Map(
  suites
    .flatMap(suite => suite.tests)
    .filter(test => test.browser_only !== true)
    .map(test => [test.id, { kind: test.kind ?? 'required', name: test.name, dependsOn: test.depends_on ?? [] }])
)

"""The hacking meter: is what a policy is paid most for right, by a judge that does not pay it?

May import `evaluation` and what is below it. `meter` takes the completions of a stage that trains,
`window` says which of them are judged again and when disagreement is an alarm (pure), `judges`
finds the independent judge of a row and asks it: `maths` reads the answer by stricter rules,
`programs` runs a program on inputs that its reward did not see, `texts` takes out of a text what
should not be paid and has it scored again. A judge has three outcomes, and none of them reaches the
trainer: the proxy reward (the run's own) trains the policy, the independent one only watches.
"""

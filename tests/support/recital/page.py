"""The page that the model learns by heart."""

PAGE = """\
The harbour master kept two ledgers. In the first she wrote what each ship carried when it \
came in, and in the second what it carried when it left; and every evening, by the light \
of a small green lamp, she added the columns and compared them. "A harbour," she used to \
say, "owns nothing. It only holds for a while what is on its way to somewhere else." The \
apprentices laughed at this, because the warehouses along the quay were full of rope and \
copper, tea and timber, and one of them held forty barrels of blue paint that nobody had \
ever claimed.

One winter the ice closed the northern channel, and seven ships lay at anchor with nothing \
to do. Their captains came ashore and quarrelled about berths. Each wanted his own crane, \
his own store and his own clerk, although no crane was used for more than an hour of the \
day. The harbour master listened until they were tired. Then she drew seven circles on the \
table with a piece of chalk, and a line from each circle to the next.

"There is one crane for each of you," she said, "but you will not keep it. On the first \
day the crane stands at the first ship, on the second day at the second, and so on until \
the seventh. While it lifts for one, the others make their cargo ready. Nobody waits, if \
everybody knows the order, and nobody can be forgotten, because the order never changes."

The oldest captain shook his head. "And if my men are slow?" he asked. "Then the next ship \
waits for you, and all of us will know whose fault it was," she answered, and wiped the \
chalk from her hands. They tried it the next morning. By the end of the week the quay was \
clear, the stores were half empty, and the captains had begun to lend each other rope \
without writing it down. When the ice broke in March they left on the same tide, one after \
another, in the order of the circles.

The harbour master closed the second ledger that night and found that both columns agreed \
to the last barrel. She looked for a long time at the page. Then she took her pen and \
wrote beneath it, in very small letters: nothing was lost, and nothing was kept that was \
not needed.
"""

/* Runs for ever and never exits by itself: for kicks and time limits. */
#include "tiny.h"

main:
        SAY     "spin: spinning\n"
1:      jmp     1b

// Its presence lets the compiler take functions without a body: see linux.go.

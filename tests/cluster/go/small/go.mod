module teragpt.test/small

go 1.26.0

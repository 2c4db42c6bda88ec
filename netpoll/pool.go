package netpoll

import "errors"

// A Pool is a fixed number of Loops that start and stop together.
type Pool struct {
	Loops []*Loop
}

// NewPool starts n Loops; config is asked for each one's Config. When one
// cannot start, none is left running.
func NewPool(n int, config func(i int) Config) (*Pool, error) {
	p := &Pool{}
	for i := range n {
		l, err := NewLoop(config(i))
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.Loops = append(p.Loops, l)
	}
	return p, nil
}

// Close closes every Loop, under the conditions of Loop.Close.
func (p *Pool) Close() error {
	var errs []error
	for _, l := range p.Loops {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
